"""Config of a run that trains a KL autoencoder. No JAX here."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_collections

from unihetero_jax.towers.common.autoencoder.config import KL16_TINY, KLConfig, KLLossConfig
from unihetero_jax.train.towers.base import TRAINED_TOWERS, TowerRunConfig, make_autoencoder_small


@TRAINED_TOWERS.section("kl16")
@dataclass(frozen=True)
class KL16RunConfig(TowerRunConfig):
    """A KL autoencoder: reconstruction and divergence.

    Attributes:
      tower: sizes of the autoencoder; ``latent_scale`` is measured when training ends.
      losses: weights of its losses.
    """

    tower: KLConfig = KL16_TINY
    losses: KLLossConfig = field(default_factory=KLLossConfig)

    @staticmethod
    def small(config: ml_collections.ConfigDict) -> None:
        """Set what the small tower on Smart Watch needs."""
        make_autoencoder_small(config)
