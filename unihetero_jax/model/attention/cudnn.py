"""``jax.nn.dot_product_attention`` by cuDNN on NVIDIA GPUs: no scores in memory, the mask is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unihetero_jax.config import Config
from unihetero_jax.config.components import ATTENTION, Part
from unihetero_jax.model.attention.base import Masked


class CudnnAttention(Masked):
    """For 16-bit activations and rows on one device."""

    platforms = ("gpu",)

    def refused(self, mesh: Any, slots: int, head_width: int, dtype: Any) -> str:
        """Return cuDNN's own limits."""
        if split := self.refused_split(mesh):
            return split
        if jnp.dtype(dtype).itemsize != 2:
            return f"needs 16-bit activations; config.model.decoder.dtype={jnp.dtype(dtype).name!r}"
        if head_width % 8 or head_width > 128:
            return f"needs heads of a multiple of 8 channels, at most 128; config.model.decoder has {head_width}"
        if slots % 64:
            return f"needs a multiple of 64 slots; config.data.seq_len={slots}"
        return ""

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, mask_BTS: jax.Array) -> jax.Array:
        """Compute attention where the mask is true."""
        return jax.nn.dot_product_attention(query, key, value, mask=mask_BTS[:, None], implementation="cudnn")

    def score_bytes(self, pairs: float, heads: float, size: int) -> float:
        """Return the mask's bytes, once for all heads."""
        del heads
        return pairs * size

    def work(self, config: Config, forward: float, again: tuple[float, float], context: int) -> Part:
        """Count whole rows; the backward pass computes the scores anew (arXiv 2205.14135, algorithm 4)."""
        return Part("decoder attention", forward, 2.0, again[1] + 0.5, 2.0, kernel=True)


ATTENTION.register("cudnn")(CudnnAttention())
