"""A decoder that stands alone: text in, logits out. What ``weights.from_hf`` gives for a language model.

B rows, T slots, D width, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unihetero_jax.config import DecoderConfig
from unihetero_jax.model.attention.base import packed_causal_mask
from unihetero_jax.model.decoder import Decoder


class LanguageModel(nnx.Module):
    """A map from token ids to logits, each row one text without padding."""

    def __init__(self, config: DecoderConfig, vocabulary: int, *, rngs: nnx.Rngs):
        self.decoder = Decoder(config, vocabulary, rngs=rngs)

    def hidden(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the hidden states after the final norm."""
        tokens_BT = jnp.asarray(tokens_BT, jnp.int32)
        mask_BTT = packed_causal_mask(jnp.ones_like(tokens_BT))
        return self.decoder(self.decoder.embed(tokens_BT), _positions(tokens_BT), mask_BTT)[0]

    def logits(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Return float32 logits of what follows each token."""
        return self.decoder.logits(self.hidden(tokens_BT))

    def greedy(self, tokens_BT: Int[Array, "B T"], count: int) -> Int[Array, "B length"]:
        """Return each prompt with its ``count`` likeliest tokens, one after another, through the cache.

        Args:
          tokens_BT: prompts of one length.
          count: tokens to add, at least 1.

        Returns:
          [B, T + count] int32.
        """
        tokens_BT = jnp.asarray(tokens_BT, jnp.int32)
        rows, slots = tokens_BT.shape
        decoder = self.decoder
        mask_BTS = jnp.pad(packed_causal_mask(jnp.ones_like(tokens_BT)), ((0, 0), (0, 0), (0, count)))
        empty = decoder.empty_cache(rows, slots + count)
        hidden_BTD, cache = decoder(decoder.embed(tokens_BT), _positions(tokens_BT), mask_BTS, cache=empty)

        def step(carry: tuple, slot: jax.Array) -> tuple[tuple, jax.Array]:
            hidden_BD, cache = carry
            token = jnp.argmax(decoder.logits(hidden_BD), axis=-1).astype(jnp.int32)
            readable = jnp.broadcast_to(jnp.arange(slots + count) <= slot, (rows, 1, slots + count))
            position = jnp.broadcast_to(slot, (rows, 1))
            hidden_BTD, cache = decoder(decoder.embed(token)[:, None], position, readable, cache=cache, start=slot)
            return (hidden_BTD[:, 0], cache), token

        _, added = jax.lax.scan(step, (hidden_BTD[:, -1], cache), slots + jnp.arange(count))
        return jnp.concatenate([tokens_BT, added.T], axis=1)


def _positions(tokens_BT: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
