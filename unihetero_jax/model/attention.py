"""Attention behind one function: packed causal attention, with grouped queries.

B rows, T query slots, S key slots, H query heads, G key/value heads, C head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def packed_causal_mask(segment: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """True where slot t may read slot s: the same segment, and not later in the row."""
    slots = segment.shape[1]
    same = segment[:, :, None] == segment[:, None, :]
    return same & jnp.tril(jnp.ones((slots, slots), bool))


def attention(
    query_BTHC: Float[Array, "B T H C"],
    key_BSGC: Float[Array, "B S G C"],
    value_BSGC: Float[Array, "B S G C"],
    mask_BTS: Bool[Array, "B T S"],
    implementation: str = "auto",
) -> Float[Array, "B T H C"]:
    """Softmax attention with float32 softmax; query head h reads key head h // (H / G).

    ``implementation``: ``xla`` is ``jax.nn.dot_product_attention``, ``reference`` the formula written out, against
    which the others are tested; ``auto`` chooses the fastest that runs here.

    Raises:
      ValueError: an unknown implementation.
    """
    if implementation in ("auto", "xla"):
        return jax.nn.dot_product_attention(
            query_BTHC, key_BSGC, value_BSGC, mask=mask_BTS[:, None], implementation="xla"
        )
    if implementation == "reference":
        return _reference(query_BTHC, key_BSGC, value_BSGC, mask_BTS)
    raise ValueError(f"unknown attention implementation {implementation!r}")


def _reference(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    rows, slots, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(rows, slots, groups, heads // groups, width)
    scores = jnp.einsum("btgrc,bsgc->bgrts", grouped, key, preferred_element_type=jnp.float32) / width**0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bgrts,bsgc->btgrc", weights, value).reshape(rows, slots, heads, width)
