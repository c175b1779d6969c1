"""Attention written out, against which the implementations are tested."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unihetero_jax.config.components import ATTENTION
from unihetero_jax.model.attention.base import Masked


class ReferenceAttention(Masked):
    """The formula."""

    platforms = ()

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        """Compute attention where the mask is true."""
        rows, slots, heads, width = query.shape
        groups = key.shape[2]
        grouped = query.reshape(rows, slots, groups, heads // groups, width)
        scores = jnp.einsum("btgrc,bsgc->bgrts", grouped, key, preferred_element_type=jnp.float32) / width**0.5
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bgrts,bsgc->btgrc", weights, value).reshape(rows, slots, heads, width)


ATTENTION.register("reference")(ReferenceAttention())
