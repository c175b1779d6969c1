"""The ``dinov2`` tower: self-supervised semantics (arXiv 2304.07193), with registers (arXiv 2309.16588) or without."""

from __future__ import annotations

from flax import nnx

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.network import Anatomy, VisionTransformer, exact_gelu

ANATOMY = Anatomy(
    class_token=True, patch_bias=True, pre_norm=False, final_norm=True, layer_scale=True, activation=exact_gelu
)


@TOWERS.register("dinov2")
class DINOv2(VisionTransformer):
    """A class token, LayerScale, exact GELU or (giant) SwiGLU, and a final norm."""

    def __init__(self, config: ViTConfig, image_size: int = 0, *, rngs: nnx.Rngs):
        del image_size  # it resizes for itself
        super().__init__(config, ANATOMY, rngs=rngs)
