"""Configs of ``unihetero towers train``: one root a kind of tower, with the sections that every run has.

A file's ``get_config()`` changes what it needs in ``defaults(kind)``. No JAX here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import ml_collections

from unihetero_jax.config import (
    AdamWConfig,
    CheckpointConfig,
    LoggingConfig,
    MeshConfig,
    SmartWatchConfig,
    TrainConfig,
    build,
    field_types,
    lookup,
)
from unihetero_jax.config.checks import validate_run
from unihetero_jax.config.loading import Tree
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.towers.attribute_classifier.config import ReaderConfig, SpoilConfig
from unihetero_jax.towers.autoencoder.config import (
    KL16_TINY,
    VQ16_TINY,
    KLConfig,
    KLLossConfig,
    VQConfig,
    VQLossConfig,
)
from unihetero_jax.towers.vit.config import PRESETS, ViTConfig, check_vit


@dataclass(frozen=True)
class TowerDataConfig:
    """Where images, and for ``siglip`` their captions, come from; a row holds one sample with its image.

    ``root``: the dataset's directory; empty means ``WORKDIR/data``. ``task``: whose records are read; of ``caption``
    and ``vqa`` the answers are an image's caption. ``image_size``: pixels a side of the batch's images (others are
    resized) and of a dataset that is built. ``slots``: tokens a sample may have. ``workers``, ``threads``,
    ``read_ahead`` and ``max_bad_records``: as for other runs.
    """

    root: str = ""
    task: Literal["caption", "vqa", "generation"] = "caption"
    image_size: int = 64
    slots: int = 64
    workers: int = 0
    threads: int = 2
    read_ahead: int = 2
    max_bad_records: int = 100
    smart_watch: SmartWatchConfig = field(default_factory=SmartWatchConfig)


@dataclass(frozen=True)
class TowerEvaluateConfig:
    """What is measured when training has ended.

    ``images``: held-out images, at most. ``candidates``: images and captions among which one is to be retrieved.
    ``pictures``: reconstructions in the picture (0: no picture).
    """

    at_end: bool = True
    images: int = 200
    candidates: int = 100
    pictures: int = 10
    batch_size: int = 100


@dataclass(frozen=True)
class TowerRunConfig:
    """What every run that trains a tower has."""

    data: TowerDataConfig = field(default_factory=TowerDataConfig)
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluate: TowerEvaluateConfig = field(default_factory=TowerEvaluateConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts, ready for JSON."""
        # As JSON reads them back: a tuple is a list there.
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values


@dataclass(frozen=True)
class VQ16RunConfig(TowerRunConfig):
    """A VQ autoencoder: reconstruction, codebook and commitment."""

    kind: Literal["vq16"] = "vq16"
    tower: VQConfig = VQ16_TINY
    losses: VQLossConfig = field(default_factory=VQLossConfig)


@dataclass(frozen=True)
class KL16RunConfig(TowerRunConfig):
    """A KL autoencoder: reconstruction and divergence. ``tower.latent_scale`` is measured when training has ended."""

    kind: Literal["kl16"] = "kl16"
    tower: KLConfig = KL16_TINY
    losses: KLLossConfig = field(default_factory=KLLossConfig)


@dataclass(frozen=True)
class TextTowerConfig:
    """The text side of a contrastive pair: a causal transformer over the caption's first ``tokens`` tokens.

    ``caption_layers``: those on top of it that tell the caption from the image, where that is asked for.
    """

    width: int = 96
    layers: int = 2
    caption_layers: int = 2
    tokens: int = 64
    heads: int = 4
    mlp_width: int = 256


@dataclass(frozen=True)
class ContrastiveConfig:
    """The space of image and text embeddings, ``width`` wide, and where scale and bias of its products start.

    The starts are those of arXiv 2303.15343, section 3.2. ``captioning``: weight of the cross-entropy of the caption's
    tokens given the image beside the contrastive loss (CoCa, arXiv 2205.01917, equation 4); 0: no captioner.
    """

    width: int = 128
    scale: float = 10.0
    bias: float = -10.0
    captioning: float = 0.0


@dataclass(frozen=True)
class SigLIPRunConfig(TowerRunConfig):
    """An image tower and a text tower, sigmoid contrastive; the image tower is what is kept.

    ``split_patches``: in training, the mean colour of a patch and its detail have kernels of their own; stored, they
    are the one that they amount to.
    """

    kind: Literal["siglip"] = "siglip"
    tower: ViTConfig = PRESETS["siglip-tiny"]
    split_patches: bool = False
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    losses: ContrastiveConfig = field(default_factory=ContrastiveConfig)


@dataclass(frozen=True)
class ReaderRunConfig(TowerRunConfig):
    """What reads drawn watches (``evaluate.reader``): attributes of Smart Watch images, some of them spoilt."""

    kind: Literal["reader"] = "reader"
    tower: ReaderConfig = field(default_factory=ReaderConfig)
    spoil: SpoilConfig = field(default_factory=SpoilConfig)


ROOTS: dict[str, type[TowerRunConfig]] = {
    "vq16": VQ16RunConfig,
    "kl16": KL16RunConfig,
    "siglip": SigLIPRunConfig,
    "reader": ReaderRunConfig,
}


def defaults(kind: str) -> ml_collections.ConfigDict:
    """The default config of a kind as a locked ``ConfigDict``: unknown keys and wrong types raise when they are set."""
    return ml_collections.ConfigDict(dataclasses.asdict(ROOTS[kind]())).lock()


def tree(kind: str) -> Tree:
    """The configs of a kind, for ``config_file.load``."""
    return Tree(ROOTS[kind], partial(resolve, kind), partial(_check_kind, kind))


def resolve(kind: str, values: Mapping[str, Any]) -> TowerRunConfig:
    """A validated config from a nested mapping; what it leaves out is as in ``defaults(kind)``.

    Raises:
      UsageError: naming the key, what was expected and the nearest valid key.
    """
    if kind not in list(ROOTS):  # which need not be a string, read from a file
        raise UsageError(f"config.kind={kind!r}: expected {', '.join(ROOTS)}{nearest(str(kind), ROOTS)}")
    _check_kind(kind, values)
    config: TowerRunConfig = build(ROOTS[kind], _over(dataclasses.asdict(ROOTS[kind]()), values), "config")
    _validate(config)
    return config


def _check_kind(kind: str, values: Mapping[str, Any]) -> None:
    given = values.get("kind", kind)
    if given != kind:
        raise UsageError(f"config.kind={given!r}: a config of another tower; expected {kind!r}")


def _over(old: Any, new: Any) -> Any:
    """``new``, and what it leaves out of ``old``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{name: _over(old[name], value) if name in old else value for name, value in new.items()}}
    return new


_POSITIVE = (
    "data.image_size data.slots data.smart_watch.num_images data.smart_watch.test_images "
    "data.smart_watch.vocabulary_size optimizer.learning_rate optimizer.epsilon train.steps train.batch_size "
    "train.accumulation train.spike_window checkpoint.every_steps checkpoint.keep_latest logging.every_steps "
    "evaluate.images evaluate.candidates evaluate.batch_size"
).split()

_NOT_NEGATIVE = (
    "data.threads data.read_ahead data.max_bad_records data.smart_watch.seed optimizer.warmup_steps "
    "optimizer.weight_decay optimizer.clip_norm train.seed train.hang_timeout train.max_skipped_updates "
    "train.max_rollbacks checkpoint.keep_every checkpoint.max_failures checkpoint.patience evaluate.pictures"
).split()

_FRACTIONS = (
    *("optimizer.final_fraction", "optimizer.beta1", "optimizer.beta2", "losses.continuous"),
    *("spoil.share", "spoil.smooth"),
)

_OF_KIND = {
    "vq16": ("tower.blocks", "tower.hidden", "tower.code_width", "tower.codes", "tower.norm_epsilon"),
    "kl16": ("tower.blocks", "tower.latent", "tower.latent_scale", "tower.norm_epsilon"),
    "siglip": (
        *("text.width", "text.layers", "text.caption_layers", "text.tokens", "text.heads", "text.mlp_width"),
        *("losses.width", "losses.scale"),
    ),
    "reader": (
        *("tower.image_size", "tower.radii", "tower.channels", "tower.layers", "tower.reach", "tower.hidden"),
        "spoil.patch",
    ),
}


def _validate(config: TowerRunConfig) -> None:
    """Refuses impossible values before anything is built, each with the key to change."""
    kind = lookup(config, "kind")
    for key, of in field_types(type(config)):
        value = lookup(config, key)
        if of is float and not -1e30 < value < 1e30:
            raise UsageError(f"config.{key}={value}: expected a finite number")
        if (key in _POSITIVE or key in _OF_KIND[kind]) and not value > 0:
            raise UsageError(f"config.{key}={value}: expected a value above 0")
        of_loss = key.startswith(("losses.", "spoil.")) and key != "losses.bias"
        if (key in _NOT_NEGATIVE or of_loss) and value < 0:
            raise UsageError(f"config.{key}={value}: expected 0 or more")
        if key in _FRACTIONS and not 0 <= value <= 1:
            raise UsageError(f"config.{key}={value}: expected a value from 0 to 1")
    validate_run(config)
    if config.train.gradient_cosines_every:
        raise UsageError(
            f"config.train.gradient_cosines_every={config.train.gradient_cosines_every}: a tower has no decoder whose "
            "layers could be measured; expected 0"
        )
    if isinstance(config, ReaderRunConfig) and config.spoil.smooth and config.tower.image_size % config.spoil.patch:
        raise UsageError(
            f"config.spoil.patch={config.spoil.patch}: does not divide config.tower.image_size="
            f"{config.tower.image_size}; expected a patch that does, or config.spoil.smooth=0"
        )
    if not isinstance(config, SigLIPRunConfig):
        return
    check_vit(config.tower, "config.tower")
    if config.tower.family != "siglip":
        raise UsageError(f"config.tower.family={config.tower.family!r}: expected 'siglip'")
    if config.text.width % (2 * config.text.heads):
        raise UsageError(
            f"config.text.heads={config.text.heads}: a head is not an even share of config.text.width="
            f"{config.text.width}; rotary positions need an even width"
        )
    if config.train.accumulation != 1:
        raise UsageError(
            f"config.train.accumulation={config.train.accumulation}: a contrastive loss compares all pairs of a batch; "
            "expected 1, and a smaller config.train.batch_size where memory is short"
        )
