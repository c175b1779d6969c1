"""The losses, each a sum and a weight; and the one place where they are added.

A mean is taken once, over the global batch and all accumulation steps: the weights are known from the batch before the
first forward pass (``weights``), so that each pass adds its share of the sums (``loss_sums``) and never a mean.

B rows, T slots, M visual tokens a row, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from unihetero_jax.config import ObjectivesConfig, SemanticObjectiveConfig
from unihetero_jax.model.unified import Seen, UnifiedModel, Visual, at_slots, purpose_key, visual_slots
from unihetero_jax.model.vision import Batch
from unihetero_jax.parallel.gathering import gathered, gathers
from unihetero_jax.parallel.mesh import constrain

Scalars = dict[str, jax.Array]


def names(config: ObjectivesConfig) -> tuple[str, ...]:
    """The objectives that a config switches on, in the order they are reported."""
    return tuple(name for name in ("text", "semantic", "codes", "pixel") if getattr(config, name).weight)


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
        "codes": jnp.float32(config.codes.weight),
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
    teacher: Seen | None = None,
    key: jax.Array | None = None,
    dropout: bool = False,
    mesh: Mesh | None = None,
) -> tuple[Scalars, Scalars]:
    """Σ weight · loss of each objective over a batch, teacher-forced; and what ``monitored`` makes metrics of.

    Args:
      config: which objectives, and how.
      model: the model.
      batch: a packed batch.
      teacher: the target side by the moving-average tower and adapter, for ``target_gradient='ema'``.
      key: for dropout, sampled latents and the noise of diffusion. Without one, latents are means, nothing is dropped,
        and the noise is that of a fixed key: an evaluation gives the same numbers twice.
      dropout: whether the decoder's dropout is on.
      mesh: where activations are constrained to.
    """
    visual = model.see(batch, None if key is None else purpose_key(key, "latents"), mesh)
    hidden_BTD = model.hidden(batch, visual, key if dropout else None, mesh)
    sums: Scalars = {}
    monitors: Scalars = {}
    if config.text.weight:
        # hidden[t] predicts tokens[t + 1]; the last slot of a row predicts nothing.
        labels = jnp.roll(batch["tokens"], -1, axis=1)
        weight = jnp.roll(batch["text_weight"], -1, axis=1).at[:, -1].set(0.0)
        sums["text"] = text_sum(model, hidden_BTD, labels, weight, config.text.chunk, config.text.z_loss, mesh)
    if not (config.semantic.weight or config.codes.weight or config.pixel.weight):
        return sums, monitors
    slots = visual_slots(batch, model.target_tokens)
    hidden_BMD = constrain(at_slots(hidden_BTD, slots.predictor), mesh, "batch", None, None)
    if config.semantic.weight:
        target = _flat(semantic_target(config.semantic, visual, teacher))
        distance = semantic_distance(model.predict_semantics(hidden_BMD), target, config.semantic.loss)
        sums["semantic"] = jnp.sum(distance * slots.weight)
        monitors = target_moments(jax.lax.stop_gradient(target), slots.weight)
    if config.codes.weight:
        assert visual.codes is not None
        logits, codes = model.code_logits(hidden_BMD), visual.codes.reshape(slots.weight.shape)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
        sums["codes"] = jnp.sum(losses * slots.weight)
    if config.pixel.weight:
        noise = purpose_key(jax.random.key(0) if key is None else key, "diffusion")
        latents = _flat(model.pixel_targets(batch, visual, None if key is None else purpose_key(key, "pixels"), mesh))
        sums["pixel"] = jnp.sum(model.pixel_losses(hidden_BMD, latents, noise, mesh) * slots.weight)
    return sums, monitors


def target_moments(target_BMF: Float[Array, "B M F"], weight_BM: Float[Array, "B M"]) -> Scalars:
    """Sums over semantic targets from which ``monitored`` tells whether they collapse; they add up over batches."""
    target, weight = target_BMF.astype(jnp.float32), weight_BM[..., None]
    unit = target * jax.lax.rsqrt(jnp.sum(jnp.square(target), axis=-1, keepdims=True) + 1e-12)
    rows = (0, 1)
    return {
        "count": jnp.sum(weight_BM),
        "sum": jnp.sum(target * weight, axis=rows),
        "squares": jnp.sum(jnp.square(target) * weight, axis=rows),
        "directions": jnp.sum(unit * weight, axis=rows),
    }


def monitored(moments: Scalars) -> Scalars:
    """Whether semantic targets collapse, from ``target_moments`` of a whole batch; 0 of both without targets.

    ``target_variance``: of each channel over all drawn tokens, a mean over the channels, relative to their mean square:
    1 where targets have no common part, 0 where all are the same. ``target_cosine``: the mean cosine of two different
    targets, (|Σu|² − n) / (n² − n) for unit vectors u: 0 where directions are spread evenly, 1 where they are one.
    """
    if not moments:
        return {}
    count = moments["count"]
    squares, center = (mean(moments[name], count) for name in ("squares", "sum"))
    variance = jnp.mean(squares - jnp.square(center)) / jnp.maximum(jnp.mean(squares), 1e-30)
    pairs = jnp.square(count) - count
    cosine = mean(jnp.sum(jnp.square(moments["directions"])) - count, pairs)
    return {"target_variance": jnp.where(count > 0, variance, 0.0), "target_cosine": cosine}


def text_sum(
    model: UnifiedModel,
    hidden_BTD: Float[Array, "B T D"],
    labels_BT: Int[Array, "B T"],
    weight_BT: Float[Array, "B T"],
    chunk: int,
    z_loss: float,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Σ weight · cross-entropy, plus ``z_loss`` · log²Z (PaLM, arXiv 2204.02311, section 5).

    With ``chunk`` slots at a time, the logits of the others do not exist, neither forward nor backward.
    """

    def some(kernel: jax.Array | None, hidden: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
        logits = model.decoder.logits(hidden, kernel)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        if z_loss:
            losses = losses + z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
        return jnp.sum(losses * weight)

    slots, kernel = hidden_BTD.shape[1], None
    arrays = (hidden_BTD, labels_BT, weight_BT)
    if mesh is not None and gathers(mesh):
        kernel = gathered(model.decoder.output_kernel(), ("embed", "vocab"), mesh, model.config.decoder.dtype)
    if not chunk or chunk >= slots:
        return some(kernel, *arrays)
    if mesh is not None and kernel is not None:
        # Each group of devices has a kernel of its own as far as the loop can tell, so that the gradients of the chunks
        # are added up where they are made, and sent once; of one kernel, every chunk's would be.
        groups = mesh.shape["slice"] * mesh.shape["fsdp"]
        kernel = constrain(jnp.broadcast_to(kernel, (groups, *kernel.shape)), mesh, "batch", None, "vocab")
        arrays = jax.tree.map(lambda x: x.reshape(groups, x.shape[0] // groups, *x.shape[1:]), arrays)
        some = _summed_over_groups(some)

    axis = arrays[1].ndim - 1

    def chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], slots // chunk, chunk, *x.shape[axis + 1 :]), axis, 0)

    def add(total: jax.Array, part: Any) -> tuple[jax.Array, None]:
        return total + jax.checkpoint(some)(kernel, *part), None

    total, _ = jax.lax.scan(add, jnp.float32(0.0), jax.tree.map(chunks, arrays))
    return total


def _summed_over_groups(some: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda *arrays: jnp.sum(jax.vmap(some)(*arrays))


def semantic_target(config: SemanticObjectiveConfig, visual: Visual, teacher: Seen | None) -> jax.Array:
    """What is predicted, [B, K, N, D or F]: input embedding or encoder output, detached unless ``through``."""
    seen = visual.targets
    if config.target_gradient == "ema":
        assert teacher is not None
        seen = teacher
    target = seen.embeddings if config.target == "input_embedding" else seen.features
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
