"""Regression of pixel latents."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unihetero_jax.config.components import LOSSES
from unihetero_jax.losses.base import LossInputs
from unihetero_jax.losses.common.latent_loss import LatentLoss
from unihetero_jax.losses.pixel.config import PixelLossConfig
from unihetero_jax.model.adapters import Head
from unihetero_jax.model.unified import HeadSizes, UnifiedModel


@LOSSES.register("pixel")
class PixelLoss(LatentLoss[PixelLossConfig]):
    """Mean squared error over the channels of each latent, by ``visual_weight``."""

    def make_head(self, sizes: HeadSizes, rngs: nnx.Rngs) -> Head:
        """Build an MLP from hidden states to latents."""
        return Head("mlp", sizes.width, self.config.width, sizes.latents, "features", sizes.dtype, rngs=rngs)

    def losses(
        self, model: UnifiedModel, hidden_BMD: jax.Array, latents_BMC: jax.Array, inputs: LossInputs
    ) -> Float[Array, "B M"]:
        """Return the squared error of each token."""
        return jnp.mean(jnp.square(getattr(model, self.head_name)(hidden_BMD) - latents_BMC), axis=-1)
