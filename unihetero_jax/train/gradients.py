"""What the objectives want of each layer: the angle between their gradients, every so many steps.

Where one objective's gradient points away from another's (a negative cosine), an update for the one undoes some of the
other's (Yu et al., arXiv 2001.06782, section 2). Both are taken at the same parameters, on the same batch, with the
same random numbers, after the weights of the objectives; layer by layer, over all parameters of a layer together.

L layers.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unihetero_jax.parallel.definition import Params
from unihetero_jax.parallel.mesh import constrain
from unihetero_jax.parallel.paths import join
from unihetero_jax.train.learner import Batch, Learner, Scalars, split_rows

COSINE, NORM = "gradient_cosine", "gradient_norm"


def measured(name: str) -> bool:
    """Whether a metric is one of ``compare``; on a step that was not due it is not a number, and left out."""
    return name.startswith((f"{COSINE}/", f"{NORM}/"))


def due(every: int, step: jax.Array) -> jax.Array:
    """Whether a step (counted from 0) is to be measured."""
    return step % every == 0


def compare(
    learner: Learner,
    trained: Params,
    frozen: Params,
    ema: Params,
    batch: Batch,
    totals: Scalars,
    step: jax.Array,
    key: jax.Array,
    mesh: Mesh,
) -> Scalars:
    """Cosines and norms of the objectives' gradients on the learner's layers.

    The backward pass runs once an objective; the forward pass once in all, or once a part of the batch.

    Returns:
      ``gradient_cosine/ONE_OTHER/LAYER`` for each two losses, and ``gradient_norm/ONE/LAYER``, float32 scalars. Where a
      loss does not reach a layer, its norm is 0 and its cosines are, too.
    """
    parts = learner.config.train.accumulation
    names = learner.losses
    layers = learner.layers(trained)

    def shares(layers: Params, rows: Batch, number: jax.Array) -> jax.Array:
        """What some rows add to each objective's part of the loss, [objectives]."""
        rows = {name: constrain(array, mesh, "batch", *[None] * (array.ndim - 1)) for name, array in rows.items()}
        part_key = jax.random.fold_in(key, number)
        sums, _ = learner.loss_sums(join(frozen, join(trained, layers)), ema, rows, part_key, mesh)
        # The loss is a sum over the objectives.
        alone = [
            {other: sums[other] if other == name else jnp.zeros_like(sums[other]) for other in sums} for name in names
        ]
        return jnp.stack([learner.combine(step, some, totals) for some in alone])

    def gradients(rows: Batch, number: jax.Array) -> list[Params]:
        _, pull = jax.vjp(lambda layers: shares(layers, rows, number), layers)
        return [pull(one)[0] for one in jnp.eye(len(names), dtype=jnp.float32)]

    if parts == 1:
        found = gradients(batch, jnp.int32(0))
    else:
        zeros = [jax.tree.map(jnp.zeros_like, layers) for _ in names]
        split = {name: split_rows(array, parts) for name, array in batch.items()}
        found, _ = jax.lax.scan(
            lambda carry, part: (jax.tree.map(jnp.add, carry, gradients(part[1], part[0])), None),
            zeros,
            (jnp.arange(parts), split),
        )
    products = {
        (one, other): _by_layer(found[one], found[other])
        for one, other in itertools.combinations_with_replacement(range(len(names)), 2)
    }
    norms = [jnp.sqrt(products[one, one]) for one in range(len(names))]
    made = {f"{NORM}/{name}": norm for name, norm in zip(names, norms, strict=True)}
    for one, other in itertools.combinations(range(len(names)), 2):
        both = norms[one] * norms[other]
        cosine = jnp.where(both > 0, products[one, other] / jnp.where(both > 0, both, 1.0), 0.0)
        made[f"{COSINE}/{names[one]}_{names[other]}"] = cosine
    return {f"{name}/{layer}": values[layer] for name, values in made.items() for layer in range(len(values))}


def _by_layer(left: Any, right: Any) -> jax.Array:
    """Σ left · right over all but the first axis of all leaves, [L]."""
    products = [
        jnp.sum((a * b).astype(jnp.float32).reshape(a.shape[0], -1), axis=1)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    ]
    return jnp.sum(jnp.stack(products), axis=0)
