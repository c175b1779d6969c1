"""Vectors of an image's tokens as one vector for a linear probe, which keeps positions.

n images, N tokens, F wide.
"""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# A probe of this width is solved in under a second.
_MOST = 4096
# Pooling cells per side: a corner of a watch is about one of them.
_CELLS = 4


def pooled(tokens_nNF: Float[Array, "n N F"]) -> Float[Array, "n S"]:
    """All tokens concatenated; where that is too wide, means over the cells of a grid of 4 × 4.

    Tokens of a grid that such cells do not divide are averaged in sixteen runs of neighbors.
    """
    count, tokens, width = tokens_nNF.shape
    cells = _CELLS**2
    if tokens * width <= _MOST or tokens <= cells:
        return tokens_nNF.reshape(count, -1)
    side = math.isqrt(tokens)
    if side**2 == tokens and side % _CELLS == 0:
        each = side // _CELLS
        grid = tokens_nNF.reshape(count, _CELLS, each, _CELLS, each, width)
        return jnp.mean(grid, axis=(2, 4)).reshape(count, -1)
    edges = [round(part * tokens / cells) for part in range(cells + 1)]
    means = [jnp.mean(tokens_nNF[:, low:high], axis=1) for low, high in itertools.pairwise(edges)]
    return jnp.concatenate(means, axis=-1)
