"""LlamaGen's VQ-16 under its published names.

See github.com/FoundationVision/LlamaGen, ``tokenizer/tokenizer_image/vq_model.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unihetero_jax.config.components import TOWER_WEIGHTS
from unihetero_jax.towers.common.autoencoder.config import VQConfig
from unihetero_jax.towers.common.autoencoder.weights import AutoencoderWeights, Shape


@TOWER_WEIGHTS.register("vq16")
class VQ16Weights(AutoencoderWeights):
    """A codebook between encoder and decoder; levels of the decoder from the smallest grid."""

    kind = "vq16"
    encoder_level = "conv_blocks"
    decoder_level = "conv_blocks"
    smallest_first = True
    block = "res"
    middle = ("mid.0", "mid.1", "mid.2")

    @classmethod
    def config(cls, sizes: Mapping[str, Any], shape: Shape) -> VQConfig:
        """Return the config, with the codebook's sizes."""
        codes, code_width = shape("quantize.embedding.weight", 2)
        hidden = shape("encoder.conv_out.weight", 4)[0]
        return VQConfig(**sizes, hidden=hidden, code_width=code_width, codes=codes)
