"""The ``patch`` tower: a trainable linear map of raw patches.

B rows, K images, N patches, P pixels of a patch (side · side · 3), F feature width.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.base import Tower
from unihetero_jax.towers.patch.config import PatchConfig


def patchify(
    images_BKHWC: UInt8[Array, "B K H W 3"], side: int, mean: float = 0.5, std: float = 0.5
) -> Float[Array, "B K N P"]:
    """Patches of ``side`` pixels in reading order, pixels as (x / 255 − mean) / std: by default in [−1, 1]."""
    rows, count, height, width, channels = images_BKHWC.shape
    grid = images_BKHWC.reshape(rows, count, height // side, side, width // side, side, channels)
    grid = grid.transpose(0, 1, 2, 4, 3, 5, 6)
    patches = grid.reshape(rows, count, (height // side) * (width // side), side * side * channels)
    return (patches.astype(jnp.float32) / 255.0 - mean) / std


def unpatchify(patches_BNP: Float[Array, "B N P"], side: int, image_size: int) -> UInt8[Array, "B H W 3"]:
    """The inverse of ``patchify`` with its defaults for one image a row; values outside [−1, 1] are clipped."""
    across = image_size // side
    grid = patches_BNP.reshape(-1, across, across, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    images = grid.reshape(-1, image_size, image_size, 3)
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


@TOWERS.register("patch")
class PatchTower(Tower):
    """Linear features of raw patches.

    One linear map in two parts that learn at their own pace: a patch's mean color, times ``color_gain``, and what is
    left of the patch without it, times ``detail_gain``. The pixels of a patch go together, and a step of Adam is as
    large in every weight: in one kernel, what all pixels share moves hundreds of times as far as an edge does, and a
    model learns the color of a patch long before a thin line in it, or instead of it.

    Attributes:
      tokens: N of an image.
      width: F.
    """

    def __init__(self, config: PatchConfig, image_size: int, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = (image_size // config.patch_size) ** 2
        self.width = width = config.width

        def kernel(rows: int, axes: tuple[str | None, str]) -> nnx.Param:
            initial = nnx.initializers.normal(rows**-0.5)
            return nnx.Param(initial(rngs.params(), (rows, width), jnp.float32), axes=axes)

        self.detail = kernel(config.patch_size**2 * 3, ("pixels", "features"))
        self.color = kernel(3, (None, "features"))
        # Not zero: next to a bias, how bright a patch is turns the feature's direction, and so outlives normalization.
        bias = nnx.initializers.normal(0.15)
        self.bias = nnx.Param(bias(rngs.params(), (width,), jnp.float32), axes=("features",))

    def __call__(self, images_BKHWC: UInt8[Array, "B K H W 3"], mesh: Mesh | None = None) -> Float[Array, "B K N F"]:
        """Features of each patch, float32."""
        del mesh
        config = self.config
        patches = patchify(images_BKHWC, config.patch_size, config.pixel_mean, config.pixel_std)
        pixels = patches.reshape(*patches.shape[:-1], config.patch_size**2, 3)
        color = jnp.mean(pixels, axis=-2, keepdims=True)
        detail = ((pixels - color) * config.detail_gain).reshape(patches.shape)
        return detail @ self.detail[...] + (color[..., 0, :] * config.color_gain) @ self.color[...] + self.bias[...]
