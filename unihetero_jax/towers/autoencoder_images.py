"""Between a batch's raw images and the [−1, 1] of the image autoencoders.

B rows, K images a row, H and W pixels of a raw image, S pixels a side that the autoencoder sees.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_signed(images_BKHWC: UInt8[Array, "B K H W 3"], side: int) -> Float[Array, "BK S S 3"]:
    """Each image at ``side`` pixels (bicubic, antialiased, whole grey levels, as PIL gives them) in [−1, 1]."""
    images = images_BKHWC.reshape(-1, *images_BKHWC.shape[2:]).astype(jnp.float32)
    for axis in (2, 1):
        if images.shape[axis] != side:
            size = [*images.shape[:axis], side, *images.shape[axis + 1 :]]
            images = jax.image.resize(images, size, "bicubic", antialias=True, precision=jax.lax.Precision.HIGHEST)
            # Pillow rounds and cuts off what bicubic overshoots after each side; the published towers saw that.
            images = jnp.clip(jnp.floor(images + 0.5), 0, 255)
    return images / 127.5 - 1.0


def to_uint8(images_BHWC: Float[Array, "B H W 3"]) -> UInt8[Array, "B H W 3"]:
    """Pictures from a decoder's output; what lies outside [−1, 1] is clipped."""
    return jnp.clip(jnp.round((images_BHWC + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
