"""Cross-entropy of the next visual code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from unihetero_jax.config.components import LOSSES
from unihetero_jax.losses.base import Loss, LossInputs
from unihetero_jax.losses.codes.config import CodesLossConfig
from unihetero_jax.model.adapters import Head
from unihetero_jax.model.unified import HeadSizes, UnifiedModel


@LOSSES.register("codes")
class CodesLoss(Loss[CodesLossConfig]):
    """Cross-entropy of each target token's code, by ``visual_weight``."""

    @property
    def head_name(self) -> str:
        """Attribute of the model, and so the first part of the parameters' paths."""
        return "code_head"

    def make_head(self, sizes: HeadSizes, rngs: nnx.Rngs) -> Head:
        """Build the map to logits over the codebook."""
        return Head(self.config.head, sizes.width, sizes.width, sizes.codes, "codes", sizes.dtype, rngs=rngs)

    def sum(self, model: UnifiedModel, inputs: LossInputs) -> jax.Array:
        """Return Σ weight · cross-entropy."""
        assert inputs.visual.codes is not None
        logits = getattr(model, self.head_name)(inputs.predictors)
        codes = inputs.visual.codes.reshape(inputs.slots.weight.shape)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
        return jnp.sum(losses * inputs.slots.weight)
