"""What a config may not say: impossible values, and values that contradict each other, each with the key to change."""

from __future__ import annotations

import dataclasses

from unihetero_jax.config.sections import (
    TOWERS,
    Config,
    GroupsConfig,
    LoggingConfig,
    MeshConfig,
    ParameterGroupConfig,
    RunConfig,
    frozen_groups,
    frozen_towers,
    mode_weights,
    pixel_tower,
    target_adapter,
    target_tower,
)
from unihetero_jax.config.towers import cached_towers
from unihetero_jax.config.tree import field_types, lookup, names
from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion import config as diffusion
from unihetero_jax.towers.sections import TowerConfig, check_tower, tower_tokens

# What draws a visual slot of each kind.
OBJECTIVE_OF = {"semantic": "semantic", "codes": "codes", "latents": "pixel"}

_POSITIVE = (
    "data.slots data.images_per_row data.packing_window data.memory_mb data.open_shards "
    "data.temperature data.max_pixels "
    "data.smart_watch.num_images data.smart_watch.test_images data.image_size "
    "data.smart_watch.vocabulary_size "
    "model.decoder.width model.decoder.layers model.decoder.heads model.decoder.kv_heads model.decoder.mlp_width "
    "model.decoder.rope_theta model.decoder.norm_epsilon model.decoder.logit_scale model.decoder.embedding_scale "
    "model.decoder.rope_scaling.factor model.decoder.rope_scaling.low_frequency_factor "
    "model.decoder.rope_scaling.original_positions "
    "model.lora.alpha objectives.pixel.width "
    "optimizer.learning_rate optimizer.epsilon train.steps train.batch_size train.accumulation train.spike_window "
    "checkpoint.every_steps checkpoint.keep_latest logging.every_steps "
    "evaluate.questions evaluate.images evaluate.batch_size evaluate.probe_images"
).split()

_NOT_NEGATIVE = (
    "data.threads data.read_ahead data.max_bad_records data.smart_watch.seed "
    "data.task_weights.vqa data.task_weights.caption data.task_weights.generation data.task_weights.text "
    "data.task_weights.interleaved "
    "model.decoder.head_width model.lora.rank "
    "objectives.text.weight objectives.text.z_loss objectives.text.chunk "
    "objectives.semantic.weight objectives.semantic.initial_weight objectives.semantic.ramp_steps "
    "objectives.codes.weight objectives.pixel.weight optimizer.warmup_steps optimizer.weight_decay optimizer.clip_norm "
    "train.seed train.hang_timeout train.max_skipped_updates train.max_rollbacks "
    "checkpoint.keep_every checkpoint.max_failures checkpoint.patience evaluate.pictures"
).split()

_FRACTIONS = (
    "model.decoder.dropout model.lora.dropout objectives.semantic.ema_decay objectives.pixel.gradient_to_decoder "
    "data.max_bad_share data.request_dropout data.generation_share optimizer.final_fraction "
    "optimizer.beta1 optimizer.beta2"
).split()


# No machine has as many cores as more of them would need.
_MOST_WORKERS = 512


def validate(config: Config) -> None:
    """Refuses impossible values before anything is built, each with the key to change."""
    for key, kind in field_types(Config):
        value = lookup(config, key)
        if kind is float and not -1e30 < value < 1e30:
            raise UsageError(f"config.{key}={value}: expected a finite number")
    for key in _POSITIVE:
        if not lookup(config, key) > 0:
            raise UsageError(f"config.{key}={lookup(config, key)}: expected a value above 0")
    for key in _NOT_NEGATIVE:
        if lookup(config, key) < 0:
            raise UsageError(f"config.{key}={lookup(config, key)}: expected 0 or more")
    for key in _FRACTIONS:
        if not 0 <= lookup(config, key) <= 1:
            raise UsageError(f"config.{key}={lookup(config, key)}: expected a value from 0 to 1")
    for name in names(GroupsConfig):
        group: ParameterGroupConfig = getattr(config.optimizer.groups, name)
        if group.learning_rate_factor <= 0:
            raise UsageError(
                f"config.optimizer.groups.{name}.learning_rate_factor={group.learning_rate_factor}: expected a value "
                f"above 0; to leave the group as it is, set config.optimizer.groups.{name}.frozen=True"
            )
        if group.weight_decay_factor < 0:
            raise UsageError(
                f"config.optimizer.groups.{name}.weight_decay_factor={group.weight_decay_factor}: expected 0 or more"
            )
    decoder, data = config.model.decoder, config.data
    for section, dropout in (("decoder", decoder.dropout), ("lora", config.model.lora.dropout)):
        if dropout == 1:
            raise UsageError(f"config.model.{section}.dropout=1.0: expected a value below 1")
    if not decoder.head_width and decoder.width % decoder.heads:
        raise UsageError(
            f"config.model.decoder.width={decoder.width} is not a multiple of config.model.decoder.heads="
            f"{decoder.heads}; set config.model.decoder.head_width or change one of them"
        )
    if decoder.head_dim % 2:
        raise UsageError(
            f"config.model.decoder: a head is {decoder.head_dim} wide; rotary positions need an even width"
        )
    scaling = decoder.rope_scaling
    if scaling.high_frequency_factor <= scaling.low_frequency_factor:
        raise UsageError(
            f"config.model.decoder.rope_scaling.high_frequency_factor={scaling.high_frequency_factor}: expected a "
            f"value above low_frequency_factor={scaling.low_frequency_factor}"
        )
    if decoder.heads % decoder.kv_heads:
        raise UsageError(
            f"config.model.decoder.kv_heads={decoder.kv_heads} does not divide "
            f"config.model.decoder.heads={decoder.heads}"
        )
    if config.objectives.text.chunk and data.slots % config.objectives.text.chunk:
        raise UsageError(
            f"config.objectives.text.chunk={config.objectives.text.chunk} does not divide "
            f"config.data.slots={data.slots}"
        )
    if data.packing_window > 32:
        raise UsageError(f"config.data.packing_window={data.packing_window}: expected 1 to 32")
    if data.image_size < 16:
        raise UsageError(f"config.data.image_size={data.image_size}: expected 16 or more")
    validate_run(config)
    init = config.init
    if not init.path and (init.tokenizer or init.parts != "all"):
        what = "init.tokenizer=True" if init.tokenizer else f"init.parts={init.parts!r}"
        raise UsageError(f"config.{what} without config.init.path: expected the path of the weights that it is about")
    weights = mode_weights(config)
    if not any(weights.values()):
        raise UsageError(f"config.data.task_weights: no task with a weight above 0 in config.data.mode={data.mode!r}")
    _validate_sources(config)
    _validate_visual(config)


def _validate_sources(config: Config) -> None:
    data = config.data
    if data.generation_share and data.mode != "mixed":
        raise UsageError(
            f"config.data.generation_share={data.generation_share} with config.data.mode={data.mode!r}: expected "
            "mode='mixed', or generation_share=0"
        )
    for name in ("root", "features"):
        if data.sources and getattr(data, name):
            raise UsageError(
                f"config.data.{name}={getattr(data, name)!r} with config.data.sources: expected one or the other"
            )
    for name, source in data.sources.items():
        key = f"config.data.sources.{name}"
        if not source.root:
            raise UsageError(f"{key}.root='': expected the directory of a dataset")
        if not source.weight >= 0 or source.weight > 1e30:
            raise UsageError(f"{key}.weight={source.weight}: expected 0 or more")
        if not 0 < source.epochs < 1e30:
            raise UsageError(f"{key}.epochs={source.epochs}: expected a value above 0")
        if not 0 <= source.turn_round <= 1:
            raise UsageError(f"{key}.turn_round={source.turn_round}: expected a value from 0 to 1")
        if not 0 < source.crop_share <= 1:
            raise UsageError(f"{key}.crop_share={source.crop_share}: expected a value above 0, up to 1")
        if source.crop_share < 1 and source.fit != "crop":
            raise UsageError(f"{key}.crop_share={source.crop_share} with fit={source.fit!r}: set fit='crop'")
        for task, weight in dataclasses.asdict(source.task_weights).items():
            if not 0 <= weight < 1e30:
                raise UsageError(f"{key}.task_weights.{task}={weight}: expected 0 or more")
    weighted = [name for name, source in data.sources.items() if source.weight]
    if weighted and len(weighted) < len(data.sources):
        other = next(name for name in data.sources if name not in weighted)
        raise UsageError(
            f"config.data.sources.{other}.weight=0 beside {weighted[0]}'s {data.sources[weighted[0]].weight}: expected "
            "a weight for all sources, or for none (then shares go by size)"
        )


def validate_run(config: RunConfig) -> None:
    """What is the same for every run: batch, accumulation, mesh, spikes, workers and how it is watched."""
    train, mesh = config.train, config.mesh
    if train.batch_size % train.accumulation:
        raise UsageError(
            f"config.train.accumulation={train.accumulation} does not divide config.train.batch_size={train.batch_size}"
        )
    _validate_logging(config.logging)
    for key in ("spike_loss", "spike_norm"):
        factor = getattr(train, key)
        if factor and factor <= 1:
            raise UsageError(f"config.train.{key}={factor}: expected a factor above 1, or 0 (off)")
    workers: int = lookup(config, "data.workers")
    if not -1 <= workers <= _MOST_WORKERS:
        raise UsageError(
            f"config.data.workers={workers}: expected at most {_MOST_WORKERS} processes, 0 (as many as suit the "
            "machine) or -1 (none)"
        )
    sizes = [getattr(mesh, axis) for axis in names(MeshConfig)]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UsageError(
            f"config.mesh={dict(zip(names(MeshConfig), sizes, strict=True))}: expected positive sizes, one of them "
            "at most -1 (what is left)"
        )


def _validate_logging(logging: LoggingConfig) -> None:
    if logging.signal_steps < 1:
        raise UsageError(f"config.logging.signal_steps={logging.signal_steps}: expected a value above 0")
    if logging.peak_flops < 0:
        raise UsageError(f"config.logging.peak_flops={logging.peak_flops}: expected 0 or more")
    steps = logging.profile_steps
    if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        raise UsageError(
            f"config.logging.profile_steps={steps}: expected the first and the last step to trace, as in 10,12"
        )


def _validate_visual(config: Config) -> None:
    """Towers, adapters and the visual objectives, against each other."""
    model, objectives, size = config.model, config.objectives, config.data.image_size
    semantic, codes, pixel = objectives.semantic, objectives.codes, objectives.pixel
    drawn = {"semantic": semantic.weight, "codes": codes.weight, "latents": pixel.weight * pixel.gradient_to_decoder}
    if not (objectives.text.weight or drawn[model.generation]):
        detached = " (or its gradient_to_decoder)" if model.generation == "latents" else ""
        raise UsageError(
            f"config.objectives: text.weight and {OBJECTIVE_OF[model.generation]}.weight{detached} are both 0; nothing "
            "would reach the decoder"
        )
    for name in TOWERS[:2]:
        check_tower(getattr(model, name), size, f"config.model.{name}")
    if model.same_tower:
        own = dataclasses.replace(model.generation_tower, distortion=model.understanding_tower.distortion)
        if own != dataclasses.replace(TowerConfig(), distortion=own.distortion):
            raise UsageError(
                "config.model.generation_tower differs from its defaults with config.model.same_tower=True: the "
                "understanding tower serves both sides; set same_tower=False to have two"
            )
    elif config.data.input_role == "both":
        raise UsageError(
            "config.data.input_role='both' with config.model.same_tower=False: an image that is read and predicted "
            "needs one tower for both; set same_tower=True or input_role='input'"
        )
    if config.data.input_role == "both":
        _validate_both(config)
    key = f"config.model.{target_tower(model)}"
    tower: TowerConfig = getattr(model, target_tower(model))
    fitting = {"codes": ("vq16",), "latents": ("kl16", "pixels")}.get(model.generation)
    if fitting and tower.kind not in fitting:
        raise UsageError(
            f"{key}.kind={tower.kind!r} with config.model.generation={model.generation!r}: expected "
            f"{' or '.join(map(repr, fitting))}"
        )
    for kind, section in (("semantic", semantic), ("codes", codes)):
        if section.weight and model.generation != kind:
            other = "" if kind == "codes" else ", or set objectives.semantic.weight=0"
            raise UsageError(
                f"config.objectives.{kind}.weight={section.weight} with config.model.generation="
                f"{model.generation!r}: set generation={kind!r}{other}"
            )
    if model.generation == "codes" and pixel.weight:
        raise UsageError(
            "config.objectives.pixel.weight with config.model.generation='codes': codes become pictures by their own "
            "decoder; set objectives.pixel.weight=0"
        )
    if pixel.weight:
        _validate_pixels(config, tower_tokens(tower, size, key), key)
    adapter_key = target_adapter(model)
    adapter = getattr(model, adapter_key)
    still = "adapters" in frozen_groups(config) and target_tower(model) in frozen_towers(config)
    if semantic.weight and semantic.target_gradient == "ema" and still:
        raise UsageError(
            "config.objectives.semantic.target_gradient='ema' with adapters and tower frozen: there is nothing to "
            "average; set target_gradient='stop', which is the same then"
        )
    switch = "normalize" if semantic.target == "input_embedding" else "normalize_input"
    if semantic.weight and semantic.loss == "cosine" and not getattr(adapter, switch):
        raise UsageError(
            f"config.model.{adapter_key}.{switch}=False with objectives.semantic.loss='cosine' and target="
            f"{semantic.target!r}: a direction alone cannot be fed back; set {switch}=True or loss='mse'"
        )
    cached = list(cached_towers(config))
    if cached and not config.data.features:
        raise UsageError(
            f"config.model.{cached[0]}.cached=True with config.data.features='': expected the folder that `unihetero "
            "towers features` made"
        )
    if config.data.features and not cached:
        raise UsageError(
            f"config.data.features={config.data.features!r} and no tower that is replaced by them: expected "
            "config.model.understanding_tower.cached=True (or that of another tower), or features=''"
        )


def _validate_both(config: Config) -> None:
    """Every image is then seen by the side of what is drawn: settings of the other one alone would do nothing."""
    model = config.model
    if not model.share_adapter:
        raise UsageError(
            "config.model.share_adapter=False with config.data.input_role='both': every image enters by the adapter "
            "of what is drawn, and the other would learn nothing; set share_adapter=True or input_role='input'"
        )
    ours, theirs = model.understanding_tower.distortion, model.generation_tower.distortion
    if ours != theirs and (ours.strength or theirs.strength):
        raise UsageError(
            "config.model.understanding_tower.distortion differs from config.model.generation_tower.distortion with "
            "config.data.input_role='both': one view of an image is read and predicted; set both alike, or "
            "input_role='input'"
        )


def _validate_pixels(config: Config, tokens: int, key: str) -> None:
    model, pixel = config.model, config.objectives.pixel
    if pixel.head == "diffusion":
        diffusion.validate(pixel.diffusion, "config.objectives.pixel.diffusion")
    if model.generation == "latents":
        if pixel.head == "diffusion" and pixel.diffusion.network == "dit":
            raise UsageError(
                "config.objectives.pixel.diffusion.network='dit' with config.model.generation='latents': a DiT draws "
                "all tokens of an image at once, and latents are fed back one by one; set network='mlp'"
            )
        return
    name = "config.model.pixel_tower"
    if model.pixel_tower.kind not in ("pixels", "kl16"):
        raise UsageError(f"{name}.kind={model.pixel_tower.kind!r}: expected 'pixels' or 'kl16'")
    if model.pixel_tower.distortion.strength:
        raise UsageError(
            f"{name}.distortion.strength={model.pixel_tower.distortion.strength}: expected 0; what is distorted are "
            "the features of config.model.understanding_tower or generation_tower"
        )
    if model.pixel_tower.training == "trained":
        raise UsageError(f"{name}.training='trained': expected 'frozen' or 'auto'; it only gives targets")
    found = tower_tokens(pixel_tower(config), config.data.image_size, name)
    check_tower(pixel_tower(config), config.data.image_size, name)
    if found != tokens:
        raise UsageError(
            f"{name} gives {found} latents an image and {key} {tokens} tokens: expected as many, since each drawn slot "
            "has one latent"
        )
