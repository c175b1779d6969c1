"""Angles between the losses' gradients on each layer, measured every so many steps.

Where one loss's gradient points away from another's (a negative cosine), an update for the one undoes some of the
other's (Yu et al., arXiv 2001.06782, section 2). Both are taken at the same parameters, on the same batch, with the
same random numbers, after the weights of the losses, and over all parameters of a layer together.

L layers.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unihetero_jax.parallel.module_definition import Params
from unihetero_jax.parallel.parameter_paths import join
from unihetero_jax.train.learner import Batch, Inputs, Learner, Scalars, sum_over_parts

COSINE, NORM = "gradient_cosine", "gradient_norm"


def is_measurement(name: str) -> bool:
    """Whether a metric is one of ``compare``; on a step that is not due it is NaN, and left out."""
    return name.startswith((f"{COSINE}/", f"{NORM}/"))


def compare_when_due(learner: Learner, inputs: Inputs, mesh: Mesh) -> Scalars:
    """Return ``compare`` at multiples of ``train.gradient_cosines_every`` (from step 0), else NaN; empty where it is 0.

    Arguments as of ``compare``.
    """
    every = learner.config.train.gradient_cosines_every
    if not every:
        return {}
    measure = partial(compare, learner, mesh=mesh)
    unknown = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), jax.eval_shape(measure, inputs))
    found: Scalars = jax.lax.cond(inputs.step % every == 0, measure, lambda _: unknown, inputs)
    return found


def compare(learner: Learner, inputs: Inputs, mesh: Mesh) -> Scalars:
    """Measure cosines and norms of the losses' gradients on the learner's layers.

    The backward pass runs once per loss; the forward pass once, or once per part of the batch.

    Args:
      learner: what is trained.
      inputs: of the step.
      mesh: the run's device mesh.

    Returns:
      ``gradient_cosine/ONE_OTHER/LAYER`` for each two losses, and ``gradient_norm/ONE/LAYER``, float32 scalars. Where a
      loss does not reach a layer, its norm and its cosines are 0.
    """
    names = learner.losses
    layers = learner.layers(inputs.trained)

    def gradients(rows: Batch, number: jax.Array | int) -> list[Params]:
        def shares(layers: Params) -> jax.Array:
            """Return what the rows add to each loss's part of the total, [losses]."""
            sums, _ = inputs.loss_sums(learner, join(inputs.trained, layers), rows, number, mesh)
            # The total is a sum over the losses.
            alone = [
                {other: sums[other] if other == name else jnp.zeros_like(sums[other]) for other in sums}
                for name in names
            ]
            return jnp.stack([learner.combine(inputs.step, some, inputs.totals) for some in alone])

        _, pull = jax.vjp(shares, layers)
        return [pull(one)[0] for one in jnp.eye(len(names), dtype=jnp.float32)]

    found = sum_over_parts(gradients, inputs.batch, learner.config.train.accumulation, mesh)
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
    """Return Σ left · right over all but the first axis of all leaves, [L]."""
    products = [
        jnp.sum((a * b).astype(jnp.float32).reshape(a.shape[0], -1), axis=1)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    ]
    return jnp.sum(jnp.stack(products), axis=0)
