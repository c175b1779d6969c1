"""Configs of ``unihetero towers train``: one root a kind of tower, with the sections that every run has.

A file's ``get_config()`` changes what it needs in ``defaults(kind)``. No JAX here.
"""

from __future__ import annotations

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
    check,
    experiment_dict,
    to_values,
)
from unihetero_jax.config.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from unihetero_jax.config.data import check_workers
from unihetero_jax.config.loading import Tree
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.towers.common.attribute_classifier.config import ReaderConfig, SpoilConfig
from unihetero_jax.towers.common.autoencoder.config import (
    KL16_TINY,
    VQ16_TINY,
    KLConfig,
    KLLossConfig,
    VQConfig,
    VQLossConfig,
)
from unihetero_jax.towers.siglip.config import PRESETS, SigLIPSizes


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
    image_size: PositiveInt = 64
    slots: PositiveInt = 64
    workers: int = 0
    threads: NonNegativeInt = 2
    read_ahead: NonNegativeInt = 2
    max_bad_records: NonNegativeInt = 100
    smart_watch: SmartWatchConfig = field(default_factory=SmartWatchConfig)

    def check(self, key: str) -> None:
        """Refuse more workers than any machine has a use for."""
        check_workers(self.workers, f"{key}.workers")


@dataclass(frozen=True)
class TowerEvaluateConfig:
    """What is measured when training has ended.

    ``images``: held-out images, at most. ``candidates``: images and captions among which one is to be retrieved.
    ``pictures``: reconstructions in the picture (0: no picture).
    """

    at_end: bool = True
    images: PositiveInt = 200
    candidates: PositiveInt = 100
    pictures: NonNegativeInt = 10
    batch_size: PositiveInt = 100


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
        values: dict[str, Any] = json.loads(json.dumps(to_values(self)))
        return values

    def check(self, key: str) -> None:
        """Refuse measurements that a tower has no layers for."""
        every = self.train.gradient_cosines_every
        if every:
            raise UsageError(
                f"{key}.train.gradient_cosines_every={every}: a tower has no decoder whose layers could be measured; "
                "expected 0"
            )


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

    width: PositiveInt = 96
    layers: PositiveInt = 2
    caption_layers: PositiveInt = 2
    tokens: PositiveInt = 64
    heads: PositiveInt = 4
    mlp_width: PositiveInt = 256

    def check(self, key: str) -> None:
        """Refuse heads without an even share of the width."""
        if self.width % (2 * self.heads):
            raise UsageError(
                f"{key}.heads={self.heads}: a head is not an even share of {key}.width={self.width}; rotary positions "
                "need an even width"
            )


@dataclass(frozen=True)
class ContrastiveConfig:
    """The space of image and text embeddings, ``width`` wide, and where scale and bias of its products start.

    The starts are those of arXiv 2303.15343, section 3.2. ``captioning``: weight of the cross-entropy of the caption's
    tokens given the image beside the contrastive loss (CoCa, arXiv 2205.01917, equation 4); 0: no captioner.
    """

    width: PositiveInt = 128
    scale: PositiveFloat = 10.0
    bias: float = -10.0
    captioning: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class SigLIPRunConfig(TowerRunConfig):
    """An image tower and a text tower, sigmoid contrastive; the image tower is what is kept.

    ``split_patches``: in training, the mean colour of a patch and its detail have kernels of their own; stored, they
    are the one that they amount to.
    """

    kind: Literal["siglip"] = "siglip"
    tower: SigLIPSizes = field(default_factory=lambda: SigLIPSizes(**PRESETS["siglip-tiny"]))
    split_patches: bool = False
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    losses: ContrastiveConfig = field(default_factory=ContrastiveConfig)

    def check(self, key: str) -> None:
        """Refuse another family's tower, and accumulation."""
        super().check(key)
        if self.train.accumulation != 1:
            raise UsageError(
                f"{key}.train.accumulation={self.train.accumulation}: a contrastive loss compares all pairs of a "
                f"batch; expected 1, and a smaller {key}.train.batch_size where memory is short"
            )


@dataclass(frozen=True)
class ReaderRunConfig(TowerRunConfig):
    """What reads drawn watches (``evaluate.reader``): attributes of Smart Watch images, some of them spoilt."""

    kind: Literal["reader"] = "reader"
    tower: ReaderConfig = field(default_factory=ReaderConfig)
    spoil: SpoilConfig = field(default_factory=SpoilConfig)

    def check(self, key: str) -> None:
        """Refuse patches that do not divide the image."""
        super().check(key)
        if self.spoil.smooth and self.tower.image_size % self.spoil.patch:
            raise UsageError(
                f"{key}.spoil.patch={self.spoil.patch}: does not divide {key}.tower.image_size="
                f"{self.tower.image_size}; expected a patch that does, or {key}.spoil.smooth=0"
            )


ROOTS: dict[str, type[TowerRunConfig]] = {
    "vq16": VQ16RunConfig,
    "kl16": KL16RunConfig,
    "siglip": SigLIPRunConfig,
    "reader": ReaderRunConfig,
}


def defaults(kind: str) -> ml_collections.ConfigDict:
    """The default config of a kind as a locked ``ConfigDict``: unknown keys and wrong types raise when they are set."""
    return experiment_dict(ROOTS[kind]())


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
    config: TowerRunConfig = build(ROOTS[kind], values, "config")
    check(config, "config")
    return config


def _check_kind(kind: str, values: Mapping[str, Any]) -> None:
    given = values.get("kind", kind)
    if given != kind:
        raise UsageError(f"config.kind={given!r}: a config of another tower; expected {kind!r}")
