"""DINOv2's folders on the Hugging Face hub, with registers or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unihetero_jax.config.components import TOWER_WEIGHTS
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.weights import Source, ViTWeights, attention, dense, norm, patch, rows, same


@TOWER_WEIGHTS.register("dinov2")
class DINOv2Weights(ViTWeights):
    """LayerScale, a class token and register tokens; the giant has a SwiGLU."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "mlp_ratio": 4,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    unread = ("embeddings.mask_token",)

    @classmethod
    def variant(cls, model_type: str) -> dict[str, Any]:
        """Return four registers, and positions resized with antialiasing, where there are registers."""
        registers = model_type == "dinov2_with_registers"
        return {"num_register_tokens": 4, "antialias_positions": True} if registers else {}

    @staticmethod
    def sources(config: ViTConfig) -> dict[str, Source]:
        """Return where each parameter comes from, by its dotted path in the tower."""
        layer = "encoder.layer.{}"
        inputs = [f"{layer}.attention.attention.{name}" for name in ("query", "key", "value")]
        sources = {
            **attention(config, inputs, f"{layer}.attention.output.dense"),
            **norm("layers.attention_norm", f"{layer}.norm1"),
            **norm("layers.mlp_norm", f"{layer}.norm2"),
            "layers.attention_scale": Source(f"{layer}.layer_scale1.lambda1", same),
            "layers.mlp_scale": Source(f"{layer}.layer_scale2.lambda1", same),
            **patch(config, "embeddings.patch_embeddings.projection"),
            "positions": rows(config, "embeddings.position_embeddings"),
            "class_token": rows(config, "embeddings.cls_token"),
            **norm("final_norm", "layernorm"),
        }
        if config.registers:
            sources["registers"] = rows(config, "embeddings.register_tokens")
        if config.swiglu:
            half = config.mlp_width  # weights_in is the gate, then what it gates
            gated = f"{layer}.mlp.weights_in"
            sources |= dense("layers.gate", gated, lambda w: w[:half].T, lambda b: b[:half])
            sources |= dense("layers.up", gated, lambda w: w[half:].T, lambda b: b[half:])
            return sources | dense("layers.down", f"{layer}.mlp.weights_out")
        return sources | dense("layers.up", f"{layer}.mlp.fc1") | dense("layers.down", f"{layer}.mlp.fc2")
