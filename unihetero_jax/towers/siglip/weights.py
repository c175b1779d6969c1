"""SigLIP's folders on the Hugging Face hub: image towers, and whole models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unihetero_jax.config.components import TOWER_WEIGHTS
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.weights import Source, ViTWeights, clip_sources, norm


@TOWER_WEIGHTS.register("siglip")
class SigLIPWeights(ViTWeights):
    """CLIP's names, with a final norm; the attention-pooling head is not read."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    whole_models = ("siglip",)
    unread = ("head.", "embeddings.position_ids")

    @staticmethod
    def sources(config: ViTConfig) -> dict[str, Source]:
        """Return where each parameter comes from, by its dotted path in the tower."""
        return {**clip_sources(config), **norm("final_norm", "post_layernorm")}
