"""The ``pixels`` tower: raw patches in [−1, 1], no parameters.

B rows, K images, N patches, P values of a patch (side · side · 3).
"""

from __future__ import annotations

from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.base import Tower
from unihetero_jax.towers.patch.network import patchify, unpatchify
from unihetero_jax.towers.pixels.config import PixelsConfig


@TOWERS.register("pixels")
class RawPatches(Tower):
    """Patches of raw pixels.

    Attributes:
      tokens: N, per image.
      width: P.
    """

    def __init__(self, config: PixelsConfig, image_size: int, *, rngs: nnx.Rngs):
        del rngs
        self.side, self.image_size = config.patch_size, image_size
        self.tokens, self.width = (image_size // self.side) ** 2, config.features

    def __call__(self, images_BKHWC: UInt8[Array, "B K H W 3"], mesh: Mesh | None = None) -> Float[Array, "B K N P"]:
        """Pixels of each patch, float32."""
        del mesh
        return patchify(images_BKHWC, self.side)

    def decode_images(self, patches_BNP: Float[Array, "B N P"]) -> UInt8[Array, "B H W 3"]:
        """Images of patches."""
        return unpatchify(patches_BNP, self.side, self.image_size)
