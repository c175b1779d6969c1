"""The ``llama`` family: Llama, and Vicuna."""

from __future__ import annotations

from unihetero_jax.config.components import DECODER_FAMILIES
from unihetero_jax.model.families.base import REFUSED, DecoderFamily


@DECODER_FAMILIES.register("llama")
class Llama(DecoderFamily):
    """No biases, no norms of queries and keys."""

    architecture = "LlamaForCausalLM"
    refused = (*REFUSED, ("attention_bias", (None, False)), ("mlp_bias", (None, False)))
