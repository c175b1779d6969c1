"""Configs of ``unihetero towers train``: one root a kind of tower, with the sections that every run has.

A file's ``get_config()`` changes what it needs in ``defaults(kind)``. No JAX here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from unihetero_jax.config import (
    AdamWConfig,
    CheckpointConfig,
    LoggingConfig,
    MeshConfig,
    SmartWatchConfig,
    TrainConfig,
)
from unihetero_jax.towers.autoencoder_config import (
    KL16_TINY,
    VQ16_TINY,
    KLConfig,
    KLLossConfig,
    VQConfig,
    VQLossConfig,
)
from unihetero_jax.towers.config import ViTConfig


@dataclass(frozen=True)
class TowerDataConfig:
    """Where images, and for ``siglip`` their captions, come from; a row holds one sample with its image.

    ``root``: the dataset's directory; empty means ``WORKDIR/data``. ``task``: whose records are read; of ``caption``
    and ``vqa`` the answers are an image's caption. ``image_size``: pixels a side of the batch's images (others are
    resized) and of a dataset that is built. ``slots``: tokens a sample may have. ``threads``, ``read_ahead`` and
    ``max_bad_records``: as for other runs.
    """

    root: str = ""
    task: Literal["caption", "vqa", "generation"] = "caption"
    image_size: int = 64
    slots: int = 64
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
        return dataclasses.asdict(self)


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
    """The text side of a contrastive pair: a causal transformer, read at the caption's last token."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    mlp_width: int = 256


@dataclass(frozen=True)
class ContrastiveConfig:
    """The space of image and text embeddings, ``width`` wide, and where scale and bias of its products start.

    The starts are those of arXiv 2303.15343, section 3.2.
    """

    width: int = 128
    scale: float = 10.0
    bias: float = -10.0


@dataclass(frozen=True)
class SigLIPRunConfig(TowerRunConfig):
    """An image tower and a text tower, sigmoid contrastive; the image tower is what is kept."""

    kind: Literal["siglip"] = "siglip"
    tower: ViTConfig = field(
        default_factory=lambda: ViTConfig(width=96, layers=3, heads=4, mlp_width=256, patch_size=8, image_size=64)
    )
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    losses: ContrastiveConfig = field(default_factory=ContrastiveConfig)


ROOTS: dict[str, type[TowerRunConfig]] = {"vq16": VQ16RunConfig, "kl16": KL16RunConfig, "siglip": SigLIPRunConfig}
