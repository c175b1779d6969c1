"""Attention for one CPU device: products in the forms that XLA's CPU library computes fast.

Queries go in blocks, each with the keys up to its end, so that most of what causality forbids is not computed. Its
backward pass transposes queries and gradients, which are small, for the products over queries; autodiff would
transpose the weights.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unihetero_jax.config.components import ATTENTION
from unihetero_jax.model.attention.base import Kernel, packed_causal_mask

# More blocks compute less, in smaller products; of 160 and 256 slots, four are the fastest.
_BLOCKS = 4


class CpuAttention(Kernel):
    """Plain JAX with a backward pass of its own; the weights of all pairs of slots are in memory."""

    platforms = ("cpu",)

    def refused(self, mesh: Any, slots: int, head_width: int, dtype: Any) -> str:
        """Refuse several devices, which XLA's own implementation serves."""
        del slots, head_width, dtype
        return (
            ""
            if (size := 1 if mesh is None else math.prod(mesh.shape.values())) == 1
            else f"runs on one device, not on {size}"
        )

    def score_bytes(self, pairs: float, heads: float, size: int) -> float:
        """Return the bytes of the weights that the backward pass needs, and of one block's scores."""
        return pairs * heads * (size + 4 / _BLOCKS)

    def __call__(
        self,
        query_BTHC: jax.Array,
        key_BTGC: jax.Array,
        value_BTGC: jax.Array,
        segment_BT: jax.Array,
        mesh: Mesh | None,
        platform: str,
    ) -> jax.Array:
        """Compute attention within segments, with a float32 softmax."""
        del mesh, platform
        rows, slots, heads, width = query_BTHC.shape
        groups = key_BTGC.shape[2]
        query = query_BTHC.reshape(rows, slots, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
        key, value = (x.transpose(0, 2, 1, 3) for x in (key_BTGC, value_BTGC))
        mixed = _attention(query, key, value, packed_causal_mask(segment_BT))
        return mixed.transpose(0, 3, 1, 2, 4).reshape(query_BTHC.shape)


# B rows, T slots, S slots of a block's keys, t queries of a block, G key/value heads, R query heads of each, C width.


def _blocks(slots: int) -> list[tuple[int, int]]:
    size = -(-slots // _BLOCKS)
    return [(first, min(first + size, slots)) for first in range(0, slots, size)]


def _product(form: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(form, left, right, preferred_element_type=jnp.float32)


def _merged(x_BGRtX: jax.Array) -> jax.Array:
    """Merge the queries of a key head into one axis: [B, G, R·t, …]."""
    return x_BGRtX.reshape(*x_BGRtX.shape[:2], -1, x_BGRtX.shape[-1])


@jax.custom_vjp
def _attention(query_BGRTC: jax.Array, key_BGTC: jax.Array, value_BGTC: jax.Array, mask_BTT: jax.Array) -> jax.Array:
    return _forward(query_BGRTC, key_BGTC, value_BGTC, mask_BTT)[0]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array, mask_BTT: jax.Array) -> tuple[jax.Array, Any]:
    dtype, slots, width = query.dtype, query.shape[3], query.shape[4]
    query = query * jnp.asarray(width**-0.5, dtype)
    # Added: a selection reads as much and is slower. Every slot attends at least to itself.
    bias_BTT = jnp.where(mask_BTT, 0.0, -1e30).astype(jnp.float32)[:, None, None]
    mixed, weights = [], []
    for first, end in _blocks(slots):
        part = query[:, :, :, first:end]
        scores = _product("bgtc,bgsc->bgts", _merged(part), key[:, :, :end])
        scores = scores.reshape(*part.shape[:4], end) + bias_BTT[..., first:end, :end]
        exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        weight = _merged((exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)).astype(dtype))
        weights.append(weight)
        mixed.append(_product("bgts,bgsc->bgtc", weight, value[:, :, :end]).astype(dtype).reshape(part.shape))
    return jnp.concatenate(mixed, axis=3), (query, key, value, weights)


def _backward(residuals: Any, gradient_BGRTC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, weights = residuals
    dtype, slots, width = query.dtype, query.shape[3], query.shape[4]
    queries = []
    keys = values = jnp.zeros((*key.shape[:2], width, slots), jnp.float32)
    for (first, end), weight in zip(_blocks(slots), weights, strict=True):
        part, gradient = (x[:, :, :, first:end] for x in (query, gradient_BGRTC))
        shape, part, gradient = part.shape, _merged(part), _merged(gradient)
        of_weight = _product("bgtc,bgsc->bgts", gradient, value[:, :, :end])
        wide = weight.astype(jnp.float32)
        of_score = (wide * (of_weight - jnp.sum(of_weight * wide, axis=-1, keepdims=True))).astype(dtype)
        queries.append(_product("bgts,bgsc->bgtc", of_score, key[:, :, :end]).reshape(shape))
        values = values.at[..., :end].add(_product("bgct,bgts->bgcs", gradient.swapaxes(2, 3), weight))
        keys = keys.at[..., :end].add(_product("bgct,bgts->bgcs", part.swapaxes(2, 3), of_score))
    of_query = (jnp.concatenate(queries, axis=3) * width**-0.5).astype(dtype)
    return of_query, *(x.astype(dtype).swapaxes(2, 3) for x in (keys, values)), None


_attention.defvjp(_forward, _backward)

ATTENTION.register("cpu")(CpuAttention())
