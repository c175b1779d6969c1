"""The tree of config sections, one dataclass a component, validated once at the door.

An experiment is a Python file whose ``get_config()`` changes what it needs in ``defaults()``, a locked
``ml_collections.ConfigDict`` with the same tree. ``resolve`` turns that into a frozen, validated ``Config``; the rest
of the code sees only the dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import ml_collections

from unihetero_jax.errors import UsageError, nearest

Mode = Literal["understanding", "generation", "mixed"]


@dataclass(frozen=True)
class SmartWatchConfig:
    """What is built when the dataset of ``data.root`` is not there yet."""

    num_images: int = 2000
    test_images: int = 200
    seed: int = 0
    questions: Literal["paper", "all"] = "all"
    vocabulary_size: int = 1024


@dataclass(frozen=True)
class TaskWeights:
    """Relative share of samples of each task in the mixture; ``data.mode`` sets the filtered ones to zero."""

    vqa: float = 1.0
    caption: float = 1.0
    generation: float = 1.0


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from and how they are packed into rows.

    ``root``: the dataset's directory; empty means ``WORKDIR/data``. ``image_size``: pixels a side of the batch's images
    (others are resized) and of a dataset that is built. ``slots``: T, slots a row. ``images_per_row``: K.
    ``packing_window``: samples a row's stream may hold back for a later row. ``threads``: threads that read and decode
    rows. ``read_ahead``: batches made before they are asked for. ``max_bad_records``: records that may be skipped
    among one process's rows, over the whole run, before it stops.
    """

    root: str = ""
    mode: Mode = "mixed"
    image_size: int = 64
    slots: int = 256
    images_per_row: int = 4
    packing_window: int = 8
    threads: int = 2
    read_ahead: int = 2
    max_bad_records: int = 100
    task_weights: TaskWeights = field(default_factory=TaskWeights)
    smart_watch: SmartWatchConfig = field(default_factory=SmartWatchConfig)


@dataclass(frozen=True)
class DecoderConfig:
    """The text model: pre-norm transformer, RoPE, grouped-query attention, SwiGLU.

    ``head_width`` 0 means width / heads. ``qkv_bias``: biases on queries, keys and values (Qwen2). ``qk_norm``: RMSNorm
    over the head width of queries and keys, before RoPE (Qwen3). ``embedding_scale``: standard deviation of the token
    embeddings at initialisation. ``logit_scale``: factor on the logits (with large tied embeddings they start large; 1
    is Llama's). ``remat``: what the backward pass recomputes: ``none`` keeps every activation, ``dots`` keeps matrix
    products, ``full`` keeps only each block's input. ``dtype``: activations and matrix products; parameters, norms,
    softmax and losses are float32 either way.
    """

    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 6
    head_width: int = 0
    mlp_width: int = 512
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True
    embedding_scale: float = 0.5
    logit_scale: float = 0.15
    dropout: float = 0.0
    attention: Literal["auto", "xla", "reference"] = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.width // self.heads


@dataclass(frozen=True)
class TowerConfig:
    """Pixels to features. ``patch``: a trainable linear map of raw patches (``patch_size`` pixels a side).

    Pixels enter as (x / 255 − ``pixel_mean``) / ``pixel_std``. A patch's mean colour is multiplied by ``color_gain``,
    what is left of the patch without it by ``detail_gain``: the louder a part, the sooner it is learned.
    """

    kind: Literal["patch"] = "patch"
    patch_size: int = 16
    width: int = 192
    pixel_mean: float = 0.5
    pixel_std: float = 0.5
    detail_gain: float = 4.0
    color_gain: float = 4.0


@dataclass(frozen=True)
class AdapterConfig:
    """Features to the decoder's input embeddings.

    ``normalize``: scale each embedding to root mean square ``decoder.embedding_scale``, so that a predicted direction
    alone determines what is fed back at generation. ``normalize_input``: the same for the features that enter the
    adapter, for when those are what is predicted.
    """

    kind: Literal["linear", "mlp"] = "mlp"
    normalize: bool = True
    normalize_input: bool = False


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of frozen linears (``model.lora``); ``rank`` 0 is off.

    With it decoder, embeddings and towers are frozen; the factors, adapters and heads are trained. ``alpha`` / ``rank``
    scales the update. ``dropout``: on the input of the factors. ``targets``: patterns, with commas between them, of the
    linears that get factors. Defaults are paper B's but for the rank, which is 128 there.
    """

    rank: int = 0
    alpha: float = 256.0
    dropout: float = 0.05
    targets: str = "decoder.layers.*"


@dataclass(frozen=True)
class ModelConfig:
    """Tower, adapter, decoder and LoRA. ``visual_positions``: what is added to visual slots besides RoPE."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    tower: TowerConfig = field(default_factory=TowerConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    visual_positions: Literal["learned", "none"] = "learned"


@dataclass(frozen=True)
class TextObjectiveConfig:
    """Cross-entropy of the next token. ``chunk``: slots whose logits exist at once; 0 means all of them."""

    weight: float = 1.0
    z_loss: float = 0.0
    chunk: int = 0


@dataclass(frozen=True)
class SemanticObjectiveConfig:
    """Autoregression of semantic visual embeddings.

    ``target``: ``input_embedding`` (after the adapter) or ``encoder_output`` (before it). ``target_gradient``:
    ``stop``, ``ema`` (targets from an exponential moving average of tower and adapter, ``ema_decay``), or ``through``.
    The weight goes linearly from ``initial_weight`` to ``weight`` over ``ramp_steps``.
    """

    weight: float = 0.3
    initial_weight: float = 0.0
    ramp_steps: int = 0
    target: Literal["input_embedding", "encoder_output"] = "input_embedding"
    loss: Literal["cosine", "mse", "smooth_l1"] = "cosine"
    target_gradient: Literal["stop", "ema", "through"] = "stop"
    ema_decay: float = 0.999


@dataclass(frozen=True)
class PixelObjectiveConfig:
    """A head that regresses the pixels of each target patch from the hidden state that predicts it.

    ``gradient_to_decoder``: factor on what flows back into the decoder; 0 is detached. ``weight`` 0: no head.
    """

    weight: float = 1.0
    gradient_to_decoder: float = 0.0
    width: int = 512


@dataclass(frozen=True)
class ObjectivesConfig:
    """The losses; each is a mean over its own weighted slots of the global batch, and they are added by weight."""

    text: TextObjectiveConfig = field(default_factory=TextObjectiveConfig)
    semantic: SemanticObjectiveConfig = field(default_factory=SemanticObjectiveConfig)
    pixel: PixelObjectiveConfig = field(default_factory=PixelObjectiveConfig)


@dataclass(frozen=True)
class ParameterGroupConfig:
    """How a group of parameters is trained: factors on the learning rate and the weight decay, or not at all."""

    learning_rate_factor: float = 1.0
    weight_decay_factor: float = 1.0
    frozen: bool = False


@dataclass(frozen=True)
class GroupsConfig:
    """The parts of the model (``model.groups`` says which parameter is in which).

    ``decoder``: layers and final norm. ``embeddings``: of tokens, and the output head. ``adapters``: with the visual
    positions. ``heads``: of the visual objectives. ``towers``: all of them. ``lora``: the factors.
    """

    decoder: ParameterGroupConfig = field(default_factory=ParameterGroupConfig)
    embeddings: ParameterGroupConfig = field(default_factory=ParameterGroupConfig)
    adapters: ParameterGroupConfig = field(default_factory=ParameterGroupConfig)
    heads: ParameterGroupConfig = field(default_factory=ParameterGroupConfig)
    towers: ParameterGroupConfig = field(default_factory=ParameterGroupConfig)
    lora: ParameterGroupConfig = field(default_factory=ParameterGroupConfig)


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW with warm-up, a schedule down to ``final_fraction`` of the peak, and clipping by global norm (0: none).

    Weights decay, but not norms' scales and biases.
    """

    learning_rate: float = 2e-3
    warmup_steps: int = 20
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclass(frozen=True)
class OptimizerConfig(AdamWConfig):
    """AdamW by groups of parameters. ``frozen_dtype``: what frozen parameters are held in."""

    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    groups: GroupsConfig = field(default_factory=GroupsConfig)


@dataclass(frozen=True)
class TrainConfig:
    """``steps``: optimiser steps. ``batch_size``: global packed rows. ``accumulation``: forward passes a step."""

    steps: int = 400
    batch_size: int = 64
    accumulation: int = 1
    seed: int = 0


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; at most one may be -1, which takes what is left."""

    slice: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint every ``every_steps`` and at the end.

    The ``keep_latest`` newest stay, and every ``keep_every``-th step besides (0: none).
    """

    every_steps: int = 100
    keep_latest: int = 2
    keep_every: int = 0


@dataclass(frozen=True)
class LoggingConfig:
    """``every_steps``: steps between two lines when there is no terminal for a progress bar."""

    every_steps: int = 20
    tensorboard: bool = True


@dataclass(frozen=True)
class EvaluateConfig:
    """What is evaluated at the end of training and by ``unihetero eval``.

    ``questions``: questions of each kind, at most. ``images``: held-out images for generation and for the losses.
    ``pictures``: watches in the picture grid (0: no pictures). ``at_end``: run all of it when training ends.
    ``merge_lora``: add LoRA's updates to their kernels first, which is faster and the same to rounding.
    """

    at_end: bool = True
    vqa: bool = True
    losses: bool = True
    generation: bool = True
    questions: int = 500
    images: int = 200
    pictures: int = 6
    batch_size: int = 100
    merge_lora: bool = True


@dataclass(frozen=True)
class InitConfig:
    """Weights that a new run starts from. ``path``: a published folder, an import, or a run's workdir; empty: none.

    ``parts``: what is taken of it; the rest of the model is initialised as ever. ``tokenizer``: whether its
    ``tokenizer.json``, with the image markers appended, takes the place of the dataset's tokenizer.
    """

    path: str = ""
    parts: Literal["all", "towers", "decoder"] = "all"
    tokenizer: bool = False


@dataclass(frozen=True)
class Config:
    """A whole experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init: InitConfig = field(default_factory=InitConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts, ready for JSON."""
        return dataclasses.asdict(self)


class RunConfig(Protocol):
    """What every training run's config has, whatever is trained."""

    @property
    def train(self) -> TrainConfig:
        """Steps, batch and seed."""

    @property
    def optimizer(self) -> AdamWConfig:
        """The optimiser and its schedule."""

    @property
    def mesh(self) -> MeshConfig:
        """How devices are laid out."""

    @property
    def checkpoint(self) -> CheckpointConfig:
        """When a checkpoint is saved, and which stay."""

    @property
    def logging(self) -> LoggingConfig:
        """How a run is watched."""

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts, ready for JSON."""


# What may differ between a run and its continuation: how long, where and how it is watched, never what is learned.
FREE_ON_RESUME = (
    "train.steps",
    "mesh",
    "checkpoint",
    "logging",
    "evaluate",
    "data.threads",
    "data.read_ahead",
    "data.max_bad_records",
)


def defaults() -> ml_collections.ConfigDict:
    """The default config as a locked ``ConfigDict``: unknown keys and wrong types raise when they are set."""
    return ml_collections.ConfigDict(Config().to_dict()).lock()


def resolve(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """A validated ``Config`` from a (possibly partial) nested mapping, such as the ``ConfigDict`` of ``defaults()``.

    Raises:
      UsageError: naming the key, what was expected and the nearest valid key.
    """
    # A ConfigDict is no Mapping.
    config = _build(Config, values.to_dict() if isinstance(values, ml_collections.ConfigDict) else values, "config")
    _validate(config)
    return config


def field_types(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and type of every value in the tree below a config dataclass."""
    hints = typing.get_type_hints(section)
    for entry in dataclasses.fields(section):
        kind = hints[entry.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from field_types(kind, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", kind


def describe(kind: Any) -> str:
    """A config type in words: ``an integer``, ``one of 'a', 'b'``."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(kind))
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]


def check_value(key: str, kind: Any, value: Any) -> Any:
    """``value`` as ``kind``: an integer may stand for a float.

    Raises:
      UsageError: when the value is of another type or is not one of the choices.
    """
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
        hint = nearest(str(value), [str(choice) for choice in typing.get_args(kind)])
        raise UsageError(f"{key}={value!r}: expected {describe(kind)}{hint}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UsageError(f"{key}: expected a finite number, got an integer of {value.bit_length()} bits") from None
    if type(value) is not kind:
        raise UsageError(f"{key}={value!r}: expected {describe(kind)}, got {type(value).__name__}")
    return value


def _build(section: type, values: Any, key: str) -> Any:
    if not isinstance(values, Mapping):
        raise UsageError(f"{key}={values!r}: expected a section with {', '.join(_names(section))}")
    hints = typing.get_type_hints(section)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise UsageError(f"unknown config key {key}.{name}{nearest(str(name), hints)}")
        kind = hints[name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            arguments[name] = _build(kind, value, f"{key}.{name}")
        else:
            arguments[name] = check_value(f"{key}.{name}", kind, value)
    return section(**arguments)


def _names(section: type) -> list[str]:
    return [entry.name for entry in dataclasses.fields(section)]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings."""
    keys: list[str] = []
    for name in sorted(set(old) | set(new)):
        left, right = old.get(name), new.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += difference(left, right, f"{prefix}{name}.")
        elif left != right or (name in old) != (name in new):
            keys.append(f"{prefix}{name}")
    return keys


def refused_on_resume(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differing keys that a continued run may not change."""
    return [
        key
        for key in difference(old, new)
        if not any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)
    ]


def to_json(config: RunConfig) -> str:
    """The config as indented JSON with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


_POSITIVE = (
    "data.slots data.images_per_row data.packing_window data.threads data.read_ahead "
    "data.smart_watch.num_images data.smart_watch.test_images data.image_size "
    "data.smart_watch.vocabulary_size "
    "model.decoder.width model.decoder.layers model.decoder.heads model.decoder.kv_heads model.decoder.mlp_width "
    "model.decoder.rope_theta model.decoder.norm_epsilon model.decoder.logit_scale model.decoder.embedding_scale "
    "model.tower.patch_size model.tower.width model.tower.pixel_std model.tower.detail_gain model.tower.color_gain "
    "model.lora.alpha objectives.pixel.width "
    "optimizer.learning_rate optimizer.epsilon train.steps train.batch_size train.accumulation "
    "checkpoint.every_steps checkpoint.keep_latest logging.every_steps "
    "evaluate.questions evaluate.images evaluate.batch_size"
).split()

_NOT_NEGATIVE = (
    "data.max_bad_records data.smart_watch.seed data.task_weights.vqa data.task_weights.caption "
    "data.task_weights.generation model.decoder.head_width model.lora.rank "
    "objectives.text.weight objectives.text.z_loss objectives.text.chunk "
    "objectives.semantic.weight objectives.semantic.initial_weight objectives.semantic.ramp_steps "
    "objectives.pixel.weight optimizer.warmup_steps optimizer.weight_decay optimizer.clip_norm "
    "train.seed checkpoint.keep_every evaluate.pictures"
).split()

_FRACTIONS = (
    "model.decoder.dropout model.lora.dropout objectives.semantic.ema_decay objectives.pixel.gradient_to_decoder "
    "model.tower.pixel_mean optimizer.final_fraction optimizer.beta1 optimizer.beta2"
).split()


def lookup(config: Any, key: str) -> Any:
    """The value of a dotted key in a ``Config``."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _validate(config: Config) -> None:
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
    for name in _names(GroupsConfig):
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
    decoder, train, mesh, data = config.model.decoder, config.train, config.mesh, config.data
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
    if decoder.heads % decoder.kv_heads:
        raise UsageError(
            f"config.model.decoder.kv_heads={decoder.kv_heads} does not divide "
            f"config.model.decoder.heads={decoder.heads}"
        )
    if train.batch_size % train.accumulation:
        raise UsageError(
            f"config.train.accumulation={train.accumulation} does not divide config.train.batch_size={train.batch_size}"
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
    sizes = [getattr(mesh, axis) for axis in _names(MeshConfig)]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UsageError(
            f"config.mesh={dict(zip(_names(MeshConfig), sizes, strict=True))}: expected positive sizes, one of them "
            "at most -1 (what is left)"
        )
    weights = mode_weights(config)
    if not any(weights.values()):
        raise UsageError(f"config.data.task_weights: no task with a weight above 0 in config.data.mode={data.mode!r}")
    objectives = config.objectives
    if not (objectives.text.weight or objectives.semantic.weight):
        raise UsageError(
            "config.objectives: text.weight and semantic.weight are both 0; nothing would reach the decoder"
        )
    semantic = objectives.semantic
    if semantic.weight and semantic.target_gradient == "ema" and {"adapters", "towers"} <= frozen_groups(config):
        raise UsageError(
            "config.objectives.semantic.target_gradient='ema' with optimizer.groups.adapters and .towers frozen: there "
            "is nothing to average; set target_gradient='stop', which is the same then"
        )
    switch = "normalize" if semantic.target == "input_embedding" else "normalize_input"
    if semantic.weight and semantic.loss == "cosine" and not getattr(config.model.adapter, switch):
        raise UsageError(
            f"config.model.adapter.{switch}=False with objectives.semantic.loss='cosine' and target="
            f"{semantic.target!r}: a direction alone cannot be fed back; set {switch}=True or loss='mse'"
        )


def frozen_groups(config: Config) -> frozenset[str]:
    """Names in ``optimizer.groups`` of what is not trained: what is frozen there, and with LoRA the base."""
    groups = config.optimizer.groups
    frozen = {name for name in _names(GroupsConfig) if getattr(groups, name).frozen}
    return frozenset(frozen | ({"decoder", "embeddings", "towers"} if config.model.lora.rank else set()))


def mode_weights(config: Config) -> dict[str, float]:
    """Weight of each task once ``data.mode`` has filtered them (paper B: understanding is vqa and caption)."""
    kept = {
        "understanding": ("vqa", "caption"),
        "generation": ("generation",),
        "mixed": ("vqa", "caption", "generation"),
    }
    weights = dataclasses.asdict(config.data.task_weights)
    return {task: (weight if task in kept[config.data.mode] else 0.0) for task, weight in weights.items()}
