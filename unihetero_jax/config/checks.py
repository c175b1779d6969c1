"""What a config may not say: impossible values, and values that contradict each other, each with the key to change."""

from __future__ import annotations

import dataclasses

from unihetero_jax.config.sections import (
    TOWERS,
    Config,
    frozen_groups,
    frozen_towers,
    mode_weights,
    pixel_tower,
    target_adapter,
    target_tower,
)
from unihetero_jax.config.towers import cached_towers
from unihetero_jax.config.tree import check, names
from unihetero_jax.errors import UsageError
from unihetero_jax.towers.sections import TowerConfig, check_tower, tower_tokens

# What draws a visual slot of each kind.
OBJECTIVE_OF = {"semantic": "semantic", "codes": "codes", "latents": "pixel"}


def validate(config: Config) -> None:
    """Refuses impossible values before anything is built, each with the key to change."""
    check(config, "config")
    chunk, slots = config.objectives.text.chunk, config.data.slots
    if chunk and slots % chunk:
        raise UsageError(f"config.objectives.text.chunk={chunk} does not divide config.data.slots={slots}")
    if not any(mode_weights(config).values()):
        mode = config.data.mode
        raise UsageError(f"config.data.task_weights: no task with a weight above 0 in config.data.mode={mode!r}")
    _validate_visual(config)
    if config.train.gradient_cosines_every:
        _validate_gradient_cosines(config)


def _validate_gradient_cosines(config: Config) -> None:
    every = f"config.train.gradient_cosines_every={config.train.gradient_cosines_every}"
    if "decoder" in frozen_groups(config):
        raise UsageError(f"{every} with a decoder that is not trained (frozen, or beside LoRA): expected 0")
    objectives = config.objectives
    if sum(bool(getattr(objectives, name).weight) for name in names(type(objectives))) < 2:
        raise UsageError(f"{every} with one objective: expected 0, or a second one with a weight above 0")


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
