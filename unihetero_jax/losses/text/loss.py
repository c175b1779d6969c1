"""Cross-entropy of the next token.

B rows, T slots, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from unihetero_jax.config.components import LOSSES
from unihetero_jax.losses.base import Batch, Loss, LossInputs
from unihetero_jax.losses.text.config import TextLossConfig
from unihetero_jax.model.unified import UnifiedModel
from unihetero_jax.parallel.gathering import gathered, gathers
from unihetero_jax.parallel.mesh import constrain


@LOSSES.register("text")
class TextLoss(Loss[TextLossConfig]):
    """Cross-entropy of ``tokens[t + 1]`` given the hidden state at t, by ``text_weight``."""

    def total_weight(self, batch: Batch) -> jax.Array:
        """Return Σ weight, without slot 0 of each row, which no slot predicts."""
        return jnp.sum(batch["text_weight"][:, 1:])

    def sum(self, model: UnifiedModel, inputs: LossInputs) -> jax.Array:
        """Return Σ weight · cross-entropy."""
        batch = inputs.batch
        # The last slot of a row predicts nothing.
        labels = jnp.roll(batch["tokens"], -1, axis=1)
        weight = jnp.roll(batch["text_weight"], -1, axis=1).at[:, -1].set(0.0)
        return text_sum(model, inputs.hidden, labels, weight, self.config.chunk, self.config.z_loss, inputs.mesh)


def text_sum(
    model: UnifiedModel,
    hidden_BTD: Float[Array, "B T D"],
    labels_BT: Int[Array, "B T"],
    weight_BT: Float[Array, "B T"],
    chunk: int,
    z_loss: float,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Return Σ weight · cross-entropy, plus ``z_loss`` · log²Z (PaLM, arXiv 2204.02311, section 5).

    With ``chunk`` slots at a time, the logits of the others do not exist, neither forward nor backward.
    """

    def some(kernel: jax.Array | None, hidden: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
        logits = model.decoder.logits(hidden, kernel, mesh)
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
        # To the loop, each group of devices has a kernel of its own, so that the gradients of the chunks are added up
        # where they are computed, and sent once; with one kernel, every chunk's would be sent.
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
