"""The ``clip`` tower: image side of OpenAI's CLIP (arXiv 2103.00020)."""

from __future__ import annotations

from flax import nnx

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.network import Anatomy, VisionTransformer, quick_gelu

ANATOMY = Anatomy(
    class_token=True, patch_bias=False, pre_norm=True, final_norm=False, layer_scale=False, activation=quick_gelu
)


@TOWERS.register("clip")
class CLIP(VisionTransformer):
    """A class token, a norm before the first block and quick GELU; the last norm belongs to the pooled output."""

    def __init__(self, config: ViTConfig, image_size: int = 0, *, rngs: nnx.Rngs):
        del image_size  # it resizes for itself
        super().__init__(config, ANATOMY, rngs=rngs)
