"""Config of a run that trains a VQ autoencoder. No JAX here."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_collections

from unihetero_jax.towers.common.autoencoder.config import VQ16_TINY, VQConfig, VQLossConfig
from unihetero_jax.train.towers.base import TRAINED_TOWERS, TowerRunConfig, make_autoencoder_small


@TRAINED_TOWERS.section("vq16")
@dataclass(frozen=True)
class VQ16RunConfig(TowerRunConfig):
    """A VQ autoencoder: reconstruction, codebook and commitment.

    Attributes:
      tower: sizes of the autoencoder.
      losses: weights of its losses.
    """

    tower: VQConfig = VQ16_TINY
    losses: VQLossConfig = field(default_factory=VQLossConfig)

    @staticmethod
    def small(config: ml_collections.ConfigDict) -> None:
        """Set what the small tower on Smart Watch needs."""
        make_autoencoder_small(config)
        # With the published weights a third of the codes was in use after 300 steps, and the hands appeared later.
        config.losses.commitment = 0.1
        config.losses.unused = 1.0
        config.losses.continuous = 0.5
        config.train.steps = 6_000
