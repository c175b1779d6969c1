"""Autoregression of semantic visual embeddings, and whether its targets collapse.

B rows, K images per row, N tokens per image, M = K·N, D width, F tower width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from unihetero_jax.config.components import LOSSES
from unihetero_jax.losses.base import Loss, LossInputs, Scalars, mean
from unihetero_jax.losses.semantic.config import SemanticLossConfig
from unihetero_jax.model.adapters import Head
from unihetero_jax.model.unified import Encoded, HeadSizes, UnifiedModel, Visual


@LOSSES.register("semantic")
class SemanticLoss(Loss[SemanticLossConfig]):
    """Distance of the predicted next visual embedding from the true one, by ``visual_weight``."""

    def make_head(self, sizes: HeadSizes, rngs: nnx.Rngs) -> Head:
        """Build the map from hidden states to embeddings or tower features."""
        size = sizes.width if self.config.target == "input_embedding" else sizes.features
        return Head(self.config.head, sizes.width, sizes.width, size, "features", sizes.dtype, rngs=rngs)

    def coefficient(self, step: jax.Array) -> jax.Array:
        """Return the weight, on its ramp."""
        config = self.config
        ramp = jnp.minimum(step / max(config.ramp_steps, 1), 1.0) if config.ramp_steps else jnp.float32(1.0)
        return config.initial_weight + ramp * (config.weight - config.initial_weight)

    def sum(self, model: UnifiedModel, inputs: LossInputs) -> tuple[jax.Array, Scalars]:
        """Return Σ weight · distance, and the moments of the targets."""
        target = _flat(semantic_target(self.config, inputs.visual, inputs.teacher))
        prediction = getattr(model, self.head_name)(inputs.predictors)
        distance = semantic_distance(prediction, target, self.config.loss)
        weight = inputs.slots.weight
        return jnp.sum(distance * weight), target_moments(jax.lax.stop_gradient(target), weight)

    def metrics(self, monitors: Scalars) -> Scalars:
        """Return ``target_variance`` and ``target_cosine``."""
        return collapse(monitors)


def target_moments(target_BMF: Float[Array, "B M F"], weight_BM: Float[Array, "B M"]) -> Scalars:
    """Sum what ``collapse`` needs to detect a collapse of semantic targets; the sums add up over batches."""
    target, weight = target_BMF.astype(jnp.float32), weight_BM[..., None]
    unit = target * jax.lax.rsqrt(jnp.sum(jnp.square(target), axis=-1, keepdims=True) + 1e-12)
    rows = (0, 1)
    return {
        "count": jnp.sum(weight_BM),
        "sum": jnp.sum(target * weight, axis=rows),
        "squares": jnp.sum(jnp.square(target) * weight, axis=rows),
        "directions": jnp.sum(unit * weight, axis=rows),
    }


def collapse(moments: Scalars) -> Scalars:
    """Measure whether semantic targets collapse, from ``target_moments`` of a whole batch; 0 of both without targets.

    ``target_variance``: the variance of each channel over all target tokens, averaged over the channels, relative to
    their mean square: 1 where targets have no common part, 0 where all are the same. ``target_cosine``: the mean cosine
    of two different targets, (|Σu|² − n) / (n² − n) for unit vectors u: 0 where directions are spread evenly, 1 where
    they are one.
    """
    count = moments["count"]
    squares, center = (mean(moments[name], count) for name in ("squares", "sum"))
    variance = jnp.mean(squares - jnp.square(center)) / jnp.maximum(jnp.mean(squares), 1e-30)
    pairs = jnp.square(count) - count
    cosine = mean(jnp.sum(jnp.square(moments["directions"])) - count, pairs)
    return {"target_variance": jnp.where(count > 0, variance, 0.0), "target_cosine": cosine}


def semantic_target(config: SemanticLossConfig, visual: Visual, teacher: Encoded | None) -> jax.Array:
    """Return the targets [B, K, N, D or F]: input embedding or encoder output, detached unless ``through``."""
    source = visual.targets
    if config.target_gradient == "ema":
        assert teacher is not None
        source = teacher
    target = source.embeddings if config.target == "input_embedding" else source.features
    return target if config.target_gradient == "through" else jax.lax.stop_gradient(target)


def semantic_distance(prediction: Float[Array, "*any D"], target: Float[Array, "*any D"], kind: str) -> jax.Array:
    """Return the distances [*any]: ``cosine`` is 1 − cos; ``mse``, ``smooth_l1`` are means over channels.

    Raises:
      ValueError: an unknown kind.
    """
    if kind == "cosine":
        return 1.0 - cosine(prediction, target)
    if kind == "mse":
        return jnp.mean(jnp.square(prediction - target), axis=-1)
    if kind == "smooth_l1":
        return jnp.mean(optax.huber_loss(prediction, target), axis=-1)
    raise ValueError(f"unknown semantic loss {kind!r}")


def cosine(left: jax.Array, right: jax.Array) -> jax.Array:
    """Return the cosine of the angle between vectors on the last axis, in float32; 0 where one of them vanishes."""
    left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    # The epsilon is inside the root: the gradient of a norm at zero is not a number.
    norms = jnp.sqrt((jnp.sum(jnp.square(left), -1) + 1e-12) * (jnp.sum(jnp.square(right), -1) + 1e-12))
    return jnp.sum(left * right, axis=-1) / norms


def _flat(x_BKNX: jax.Array) -> jax.Array:
    return x_BKNX.reshape(x_BKNX.shape[0], -1, x_BKNX.shape[-1])
