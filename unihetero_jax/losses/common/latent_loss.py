"""Losses on pixel latents: their targets, and the gradient that they send into the decoder.

B rows, M visual tokens per row, C channels of a latent, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unihetero_jax.losses.base import Loss, LossInputs
from unihetero_jax.losses.common.latents import LatentLossConfig
from unihetero_jax.model.gradient_scale import scale_gradient
from unihetero_jax.model.unified import UnifiedModel, purpose_key

Config = TypeVar("Config", bound=LatentLossConfig)


class LatentLoss(Loss[Config]):
    """A loss of predicted latents against those of the pixel tower."""

    @property
    def head_name(self) -> str:
        """Attribute of the model, and so the first part of the parameters' paths."""
        return "pixel_head"

    def sum(self, model: UnifiedModel, inputs: LossInputs) -> jax.Array:
        """Return Σ weight · loss; the gradient to the decoder is scaled as configured."""
        key = None if inputs.key is None else purpose_key(inputs.key, "pixels")
        latents = model.pixel_targets(inputs.batch, inputs.visual, key, inputs.mesh)
        latents = latents.reshape(latents.shape[0], -1, latents.shape[-1])
        hidden = scale_gradient(inputs.predictors, self.config.gradient_to_decoder)
        return jnp.sum(self.losses(model, hidden, latents, inputs) * inputs.slots.weight)

    @abstractmethod
    def losses(
        self,
        model: UnifiedModel,
        hidden_BMD: Float[Array, "B M D"],
        latents_BMC: Float[Array, "B M C"],
        inputs: LossInputs,
    ) -> Float[Array, "B M"]:
        """Return the loss of each token.

        Args:
          model: the model.
          hidden_BMD: hidden states that predict the tokens, whole images.
          latents_BMC: the true latents.
          inputs: of the loss.
        """
