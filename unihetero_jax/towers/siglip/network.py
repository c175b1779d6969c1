"""The ``siglip`` tower: image side of a sigmoid-contrastive pair (arXiv 2303.15343)."""

from __future__ import annotations

import jax
from flax import nnx

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.network import Anatomy, VisionTransformer

# jax's gelu is the tanh approximation by default, as SigLIP's is.
ANATOMY = Anatomy(
    class_token=False, patch_bias=True, pre_norm=False, final_norm=True, layer_scale=False, activation=jax.nn.gelu
)


@TOWERS.register("siglip")
class SigLIP(VisionTransformer):
    """No class token, GELU by tanh, and a final norm; its attention-pooling head is not part of the tower."""

    def __init__(self, config: ViTConfig, image_size: int = 0, *, rngs: nnx.Rngs):
        del image_size  # it resizes for itself
        super().__init__(config, ANATOMY, rngs=rngs)
