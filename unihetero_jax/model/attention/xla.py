"""``jax.nn.dot_product_attention`` by XLA: everywhere; scores of all pairs of slots in memory."""

from __future__ import annotations

import jax

from unihetero_jax.config.components import ATTENTION
from unihetero_jax.model.attention.base import Masked


class XlaAttention(Masked):
    """The portable implementation."""

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, mask_BTS: jax.Array) -> jax.Array:
        """Compute attention where the mask is true."""
        return jax.nn.dot_product_attention(query, key, value, mask=mask_BTS[:, None], implementation="xla")


ATTENTION.register("xla")(XlaAttention())
