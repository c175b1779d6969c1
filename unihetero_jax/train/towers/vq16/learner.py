"""Learner of the VQ autoencoder.

B rows (one image each), V codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.parallel.module_definition import ModelDefinition, Params
from unihetero_jax.towers.common.autoencoder import losses
from unihetero_jax.towers.common.autoencoder.images import to_signed
from unihetero_jax.towers.vq16.network import VQ16
from unihetero_jax.train.learner import Batch, Scalars
from unihetero_jax.train.towers.base import TRAINED_TOWERS
from unihetero_jax.train.towers.common import TowerLearner, image_weight
from unihetero_jax.train.towers.vq16.config import VQ16RunConfig


@TRAINED_TOWERS.register("vq16")
@dataclass(frozen=True)
class VQ16Learner(TowerLearner):
    """Reconstruction, codebook and commitment; reports how the codebook is used within a batch."""

    config: VQ16RunConfig
    model: ModelDefinition[VQ16]

    @staticmethod
    def module(config: VQ16RunConfig, vocabulary: int, rngs: nnx.Rngs) -> VQ16:
        """Create the autoencoder."""
        del vocabulary
        return VQ16(config.tower, rngs=rngs)

    @property
    def coefficients(self) -> dict[str, float]:
        """Factors of the losses of ``vq_loss_sums``."""
        return losses.vq_coefficients(self.config.losses)

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """Return the sums, and how often each code was chosen, [V]."""
        model, weight = self.model.bind(params), image_weight(batch)
        images = to_signed(batch["images"], model.config.image_size)
        share = self.config.losses.continuous
        continuous = jax.random.bernoulli(key, share, weight.shape) if share else None
        sums, _, indices = losses.vq_loss_sums(model, images, weight, self.losses, continuous)
        return sums, losses.code_counts(indices, weight, model.config.codes)

    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """Return Σ coefficient · sum, divided once."""
        return losses.combine(self.coefficients, sums, totals["l1"])

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """Return ``code_perplexity`` and ``codes_used`` (a share) of the batch."""
        use = losses.codebook_use(monitors)
        return {"code_perplexity": use["perplexity"], "codes_used": use["used"]}
