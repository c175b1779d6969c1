"""Adapters between towers and decoder, and heads behind the decoder."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unihetero_jax.config import AdapterConfig
from unihetero_jax.model.decoder import linear


def unit_rms(x: jax.Array, scale: float = 1.0) -> jax.Array:
    """Scale the last axis to root mean square ``scale``, in float32."""
    x = x.astype(jnp.float32)
    return x * (scale * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6))


class Adapter(nnx.Module):
    """A map of tower features to the decoder's input embeddings, float32.

    Args:
      config: kind and normalization.
      features: F, width of the tower's features.
      width: D, of the decoder.
      scale: root mean square of embeddings, where they are normalized, and of the visual positions.
      positions: N visual positions to learn; 0: none.
      rngs: for initialization.
    """

    def __init__(
        self, config: AdapterConfig, features: int, width: int, scale: float, positions: int, *, rngs: nnx.Rngs
    ):
        self.config = config
        self.scale = scale
        if config.kind == "mlp":
            self.hidden = linear(features, width, ("features", "hidden"), jnp.float32, rngs)
            self.output = linear(width, width, ("hidden", "embed"), jnp.float32, rngs)
        else:
            self.output = linear(features, width, (None, "embed"), jnp.float32, rngs)
        self.positions = _positions(positions, width, scale, rngs) if positions else None

    def __call__(self, features: Float[Array, "*any F"]) -> Float[Array, "*any D"]:
        """Return the embeddings of features; of root mean square ``scale`` when normalized."""
        x = unit_rms(features) if self.config.normalize_input else features
        if self.config.kind == "mlp":
            x = jax.nn.gelu(self.hidden(x))
        x = self.output(x)
        return unit_rms(x, self.scale) if self.config.normalize else x

    def place(self, embedding: jax.Array, patch: jax.Array) -> jax.Array:
        """Return the decoder's input on a visual slot: the embedding plus the position of its patch.

        Args:
          embedding: [..., D] embeddings.
          patch: [...] which token of the image; broadcasts.
        """
        return embedding if self.positions is None else embedding + self.positions[...][patch]


def _positions(count: int, width: int, scale: float, rngs: nnx.Rngs) -> nnx.Param:
    # Of the scale of the embeddings they are added to, for the reason that token embeddings start large.
    table = nnx.initializers.normal(scale)(rngs.params(), (count, width))
    return nnx.Param(table, axes=("patches", "embed"))


class Head(nnx.Module):
    """Predictions from hidden states: a linear map, or Linear–GELU–Linear.

    Args:
      kind: which of the two.
      width: D, of the hidden states.
      hidden: between the two linears.
      size: of a prediction.
      axis: logical axis of a prediction behind a hidden layer; alone, a linear is split as one.
      dtype: of matrix products.
      rngs: for initialization.
    """

    def __init__(
        self,
        kind: Literal["linear", "mlp"],
        width: int,
        hidden: int,
        size: int,
        axis: str | None,
        dtype: Any,
        *,
        rngs: nnx.Rngs,
    ):
        self.kind = kind
        if kind == "mlp":
            self.hidden = linear(width, hidden, ("embed", "hidden"), dtype, rngs)
            self.output = linear(hidden, size, ("hidden", axis), dtype, rngs)
        else:
            self.output = linear(width, size, ("embed", "hidden"), dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return float32 predictions."""
        if self.kind == "mlp":
            x = jax.nn.gelu(self.hidden(x))
        return self.output(x).astype(jnp.float32)
