"""The losses, each a sum and a weight; and the one place where they are added.

A mean is taken once, over the global batch and all accumulation steps: the weights are known from the batch before the
first forward pass (``weights``), so that each pass adds its share of the sums (``loss_sums``) and never a mean.

B rows, T slots, M visual tokens a row, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from unihetero_jax.config import ObjectivesConfig, SemanticObjectiveConfig
from unihetero_jax.model.unified import Batch, UnifiedModel, Visual, at_slots, visual_slots

Scalars = dict[str, jax.Array]


def names(config: ObjectivesConfig) -> tuple[str, ...]:
    """The objectives that a config switches on, in the order they are reported."""
    sections = {"text": config.text.weight, "semantic": config.semantic.weight, "pixel": config.pixel.weight}
    return tuple(name for name, weight in sections.items() if weight)


def weights(config: ObjectivesConfig, batch: Batch) -> Scalars:
    """Σ weight of each objective over a batch. Slot 0 of a row has nothing before it that could predict it."""
    text = jnp.sum(batch["text_weight"][:, 1:])
    visual = jnp.sum(batch["visual_weight"])
    return {name: text if name == "text" else visual for name in names(config)}


def coefficients(config: ObjectivesConfig, step: jax.Array) -> Scalars:
    """The factor of each objective in the loss of a step; the semantic one is ramped."""
    semantic = config.semantic
    ramp = jnp.minimum(step / max(semantic.ramp_steps, 1), 1.0) if semantic.ramp_steps else jnp.float32(1.0)
    values = {
        "text": jnp.float32(config.text.weight),
        "semantic": semantic.initial_weight + ramp * (semantic.weight - semantic.initial_weight),
        "pixel": jnp.float32(config.pixel.weight),
    }
    return {name: values[name] for name in names(config)}


def combine(config: ObjectivesConfig, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
    """Σ coefficient · sum / weight: the loss (or one accumulation step's share of it)."""
    factor = coefficients(config, step)
    shares = [factor[name] * mean(sums[name], totals[name]) for name in names(config)]
    return sum(shares[1:], shares[0])


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
    """``total / weight``, and 0 where there is no weight (a batch without images, say)."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def loss_sums(
    config: ObjectivesConfig,
    model: UnifiedModel,
    batch: Batch,
    *,
    teacher: Visual | None = None,
    dropout_key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> Scalars:
    """Σ weight · loss of each objective over a batch, teacher-forced.

    Args:
      config: which objectives, and how.
      model: the model.
      batch: a packed batch.
      teacher: features and embeddings by the moving-average tower and adapter, for ``target_gradient='ema'``.
      dropout_key: for dropout; none without it.
      mesh: where activations are constrained to.
    """
    visual = model.see(batch["images"])
    hidden_BTD = model.hidden(batch, visual, dropout_key, mesh)
    sums: Scalars = {}
    if config.text.weight:
        # hidden[t] predicts tokens[t + 1]; the last slot of a row predicts nothing.
        labels = jnp.roll(batch["tokens"], -1, axis=1)
        weight = jnp.roll(batch["text_weight"], -1, axis=1).at[:, -1].set(0.0)
        sums["text"] = text_sum(model, hidden_BTD, labels, weight, config.text.chunk, config.text.z_loss)
    if config.semantic.weight or config.pixel.weight:
        slots = visual_slots(batch, model.tokens)
        hidden_BMD = at_slots(hidden_BTD, slots.predictor)
        if config.semantic.weight:
            target = semantic_target(config.semantic, visual, teacher)
            prediction = model.predict_semantics(hidden_BMD)
            distance = semantic_distance(prediction, _flat(target), config.semantic.loss)
            sums["semantic"] = jnp.sum(distance * slots.weight)
        if config.pixel.weight:
            error = jnp.square(model.predict_pixels(hidden_BMD) - _flat(model.pixel_targets(batch["images"])))
            sums["pixel"] = jnp.sum(jnp.mean(error, axis=-1) * slots.weight)
    return sums


def text_sum(
    model: UnifiedModel,
    hidden_BTD: Float[Array, "B T D"],
    labels_BT: Int[Array, "B T"],
    weight_BT: Float[Array, "B T"],
    chunk: int,
    z_loss: float,
) -> jax.Array:
    """Σ weight · cross-entropy, plus ``z_loss`` · log²Z (PaLM, arXiv 2204.02311, section 5).

    With ``chunk`` slots at a time, the logits of the others do not exist, neither forward nor backward.
    """

    def some(hidden: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
        logits = model.decoder.logits(hidden)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        if z_loss:
            losses = losses + z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
        return jnp.sum(losses * weight)

    slots = hidden_BTD.shape[1]
    if not chunk or chunk >= slots:
        return some(hidden_BTD, labels_BT, weight_BT)

    def chunks(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], slots // chunk, chunk, *x.shape[2:]).swapaxes(0, 1)

    def add(total: jax.Array, part: Any) -> tuple[jax.Array, None]:
        return total + jax.checkpoint(some)(*part), None

    total, _ = jax.lax.scan(add, jnp.float32(0.0), (chunks(hidden_BTD), chunks(labels_BT), chunks(weight_BT)))
    return total


def semantic_target(config: SemanticObjectiveConfig, visual: Visual, teacher: Visual | None) -> jax.Array:
    """What is predicted, [B, K, N, D or F]: input embedding or encoder output, detached unless ``through``."""
    if config.target_gradient == "ema":
        assert teacher is not None
        visual = teacher
    target = visual.embeddings if config.target == "input_embedding" else visual.features
    return target if config.target_gradient == "through" else jax.lax.stop_gradient(target)


def semantic_distance(prediction: Float[Array, "*any D"], target: Float[Array, "*any D"], kind: str) -> jax.Array:
    """Distance of each prediction, [*any]: ``cosine`` is 1 − cos; ``mse`` and ``smooth_l1`` are means over channels.

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
    """Cosine of the angle between vectors on the last axis, in float32; 0 where one of them vanishes."""
    left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    # The epsilon is inside the root: the gradient of a norm at zero is not a number.
    norms = jnp.sqrt((jnp.sum(jnp.square(left), -1) + 1e-12) * (jnp.sum(jnp.square(right), -1) + 1e-12))
    return jnp.sum(left * right, axis=-1) / norms


def _flat(x_BKNX: jax.Array) -> jax.Array:
    return x_BKNX.reshape(x_BKNX.shape[0], -1, x_BKNX.shape[-1])
