"""The ``qwen2`` family: Qwen2 and Qwen2.5."""

from __future__ import annotations

from unihetero_jax.config.components import DECODER_FAMILIES
from unihetero_jax.model.families.base import REFUSED, DecoderFamily


@DECODER_FAMILIES.register("qwen2")
class Qwen2(DecoderFamily):
    """Biases of query, key and value."""

    architecture = "Qwen2ForCausalLM"
    qkv_bias = True
    refused = (*REFUSED, ("use_sliding_window", (None, False)))
