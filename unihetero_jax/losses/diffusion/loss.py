"""Diffusion or flow on pixel latents."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from unihetero_jax.config.components import LOSSES
from unihetero_jax.losses.base import LossInputs
from unihetero_jax.losses.common.latent_loss import LatentLoss
from unihetero_jax.losses.diffusion.config import DiffusionLossConfig
from unihetero_jax.model.diffusion.head import DiffusionHead
from unihetero_jax.model.unified import HeadSizes, UnifiedModel, purpose_key


@LOSSES.register("diffusion")
class DiffusionLoss(LatentLoss[DiffusionLossConfig]):
    """The denoising loss of each latent, by ``visual_weight``."""

    def make_head(self, sizes: HeadSizes, rngs: nnx.Rngs) -> DiffusionHead:
        """Build the network that denoises."""
        return DiffusionHead(self.config, sizes.width, sizes.tokens, sizes.latents, rngs=rngs)

    def losses(
        self, model: UnifiedModel, hidden_BMD: jax.Array, latents_BMC: jax.Array, inputs: LossInputs
    ) -> Float[Array, "B M"]:
        """Return the loss of each token, its noise from the key; from a fixed key in an evaluation."""
        noise = purpose_key(jax.random.key(0) if inputs.key is None else inputs.key, "diffusion")
        losses: jax.Array = getattr(model, self.head_name).losses(latents_BMC, hidden_BMD, noise, inputs.mesh)
        return losses
