"""CLIP's folders on the Hugging Face hub: image towers, and whole models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unihetero_jax.config.components import TOWER_WEIGHTS
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.weights import Source, ViTWeights, clip_sources, norm, rows


@TOWER_WEIGHTS.register("clip")
class CLIPWeights(ViTWeights):
    """A class token and a norm before the first block; the norm of the pooled output is not read."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    whole_models = ("clip",)
    unread = ("post_layernorm.", "embeddings.position_ids")

    @staticmethod
    def sources(config: ViTConfig) -> dict[str, Source]:
        """Return where each parameter comes from, by its dotted path in the tower."""
        sources = {
            **clip_sources(config),
            "class_token": rows(config, "embeddings.class_embedding"),
            **norm("pre_norm", "pre_layrnorm"),  # spelt like this in every published file
        }
        del sources["patch.bias"]
        return sources
