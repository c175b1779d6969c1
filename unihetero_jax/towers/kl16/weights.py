"""MAR's KL-16 under its published names (github.com/LTH14/mar, ``models/vae.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unihetero_jax.config.components import TOWER_WEIGHTS
from unihetero_jax.towers.common.autoencoder.config import KLConfig
from unihetero_jax.towers.common.autoencoder.weights import AutoencoderWeights, Shape


@TOWER_WEIGHTS.register("kl16")
class KL16Weights(AutoencoderWeights):
    """Levels of the decoder from the largest grid."""

    kind = "kl16"
    encoder_level = "down"
    decoder_level = "up"
    smallest_first = False
    block = "block"
    middle = ("mid.block_1", "mid.attn_1", "mid.block_2")

    @classmethod
    def config(cls, sizes: Mapping[str, Any], shape: Shape) -> KLConfig:
        """Return the config, with the latents' width."""
        return KLConfig(**sizes, latent=shape("post_quant_conv.weight", 4)[0])
