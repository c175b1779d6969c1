"""Learner of the KL autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.parallel.module_definition import ModelDefinition, Params
from unihetero_jax.towers.common.autoencoder import losses
from unihetero_jax.towers.common.autoencoder.images import to_signed
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.train.learner import Batch, Scalars
from unihetero_jax.train.towers.base import TRAINED_TOWERS
from unihetero_jax.train.towers.common import TowerLearner, image_weight
from unihetero_jax.train.towers.kl16.config import KL16RunConfig


@TRAINED_TOWERS.register("kl16")
@dataclass(frozen=True)
class KL16Learner(TowerLearner):
    """Reconstruction and divergence."""

    config: KL16RunConfig
    model: ModelDefinition[KL16]

    @staticmethod
    def module(config: KL16RunConfig, vocabulary: int, rngs: nnx.Rngs) -> KL16:
        """Create the autoencoder."""
        del vocabulary
        return KL16(config.tower, rngs=rngs)

    @property
    def coefficients(self) -> dict[str, float]:
        """Factors of the losses of ``kl_loss_sums``."""
        return losses.kl_coefficients(self.config.losses)

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """Return the sums; nothing is monitored."""
        model, weight = self.model.bind(params), image_weight(batch)
        images = to_signed(batch["images"], model.config.image_size)
        sums, _ = losses.kl_loss_sums(model, images, weight, key, self.losses)
        return sums, {}

    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """Return Σ coefficient · sum, divided once."""
        return losses.combine(self.coefficients, sums, totals["l1"])
