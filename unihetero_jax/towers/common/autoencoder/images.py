"""Between a batch's raw images and the [−1, 1] of the image autoencoders.

B rows, K images per row, H and W pixels of a raw image, S pixels per side that the autoencoder sees.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from unihetero_jax.towers.common.vit.preprocess import exact_weights, resize, resize_matrix


def to_signed(images_BKHWC: UInt8[Array, "B K H W 3"], side: int) -> Float[Array, "BK S S 3"]:
    """Each image at ``side`` pixels (bicubic, antialiased, whole gray levels, as PIL gives them) in [−1, 1]."""
    images = images_BKHWC.reshape(-1, *images_BKHWC.shape[2:]).astype(jnp.float32)
    height, width = images.shape[1:3]
    if (height, width) != (side, side):
        rows, columns = (exact_weights(resize_matrix(size, side, antialias=True)) for size in (height, width))
        images = resize(images, rows, columns, whole_levels=True)
    return images / 127.5 - 1.0


def to_uint8(images_BHWC: Float[Array, "B H W 3"]) -> UInt8[Array, "B H W 3"]:
    """Pictures from a decoder's output; what lies outside [−1, 1] is clipped."""
    return jnp.clip(jnp.round((images_BHWC + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
