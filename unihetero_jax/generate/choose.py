"""Choosing one of many by logits: the likeliest, or a sample.

B rows, V things to choose from.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unihetero_jax.generate.sampling_options import Rule


def choose(
    logits_BV: Float[Array, "B V"], keys_B: jax.Array, rule: Rule, numbers: Float[Array, " 2"]
) -> Int[Array, " B"]:
    """Choose one of V in each row: the likeliest, or a sample by the row's key.

    Args:
      logits_BV: float32.
      keys_B: a random key per row; a row's choice is a function of its own key and logits.
      rule: see ``Choice``.
      numbers: temperature and top-p.
    """
    if not rule.sampled:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits = logits_BV / numbers[0]
    size = logits.shape[-1]
    if rule.top_k or rule.nucleus:
        # Descending. The cut is by value, so that nothing has to be put back in its place.
        best = jax.lax.top_k(logits, min(rule.top_k or size, size))[0]
        if rule.nucleus:
            probability = jax.nn.softmax(best, axis=-1)
            before = jnp.cumsum(probability, axis=-1) - probability
            best = jnp.where(before < numbers[1], best, jnp.inf)
        logits = jnp.where(logits >= jnp.min(best, axis=-1, keepdims=True), logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, logits).astype(jnp.int32)
