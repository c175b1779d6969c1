"""The ``qwen3`` family."""

from __future__ import annotations

from unihetero_jax.config.components import DECODER_FAMILIES
from unihetero_jax.model.families.base import REFUSED, DecoderFamily


@DECODER_FAMILIES.register("qwen3")
class Qwen3(DecoderFamily):
    """Norms of queries and keys; heads of 128 where config.json names no width."""

    architecture = "Qwen3ForCausalLM"
    qk_norm = True
    head_width = 128
    refused = (*REFUSED, ("attention_bias", (None, False)), ("use_sliding_window", (None, False)))
