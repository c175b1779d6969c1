"""The ``vq16`` tower: LlamaGen's VQ-16 (arXiv 2406.06525), images ↔ indices into a codebook of unit vectors.

B images (or rows), K images per row, H and W pixels, h and w the grid, N = h·w tokens, E code width, V codes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.common.autoencoder.blocks import Autoencoder
from unihetero_jax.towers.common.autoencoder.config import VQConfig
from unihetero_jax.towers.common.autoencoder.images import to_signed, to_uint8


class Quantized(NamedTuple):
    """Unit latents before quantization and their nearest codes, [B, h, w, E]; the codes' indices, [B, N]."""

    unit: jax.Array
    latent: jax.Array
    indices: jax.Array


def unit(x: Float[Array, "*any E"]) -> Float[Array, "*any E"]:
    """Vectors of length 1 along the last axis, in float32; a vanishing one stays zero."""
    x = x.astype(jnp.float32)
    # The bound is inside the root, and squared: the gradient of a norm at zero is not a number.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


@TOWERS.register("vq16")
class VQ16(Autoencoder):
    """Encoder, codebook and decoder. As a tower, its features are the quantized latents."""

    def __init__(self, config: VQConfig, image_size: int = 0, *, rngs: nnx.Rngs):
        del image_size  # it resizes for itself
        super().__init__(config, config.code_width)
        self.config = config
        self._make_encoder(config, config.hidden, config.code_width, rngs)
        # Only a code's direction counts. Drawn evenly over the sphere, all of them start within reach.
        codebook = jax.random.normal(rngs.params(), (config.codes, config.code_width), jnp.float32)
        self.codebook = nnx.Param(unit(codebook), axes=("codes", None))
        self._make_decoder(config, config.hidden, rngs)

    def __call__(self, images_BKHWC: UInt8[Array, "B K H W 3"], mesh: Mesh | None = None) -> Float[Array, "B K N E"]:
        """The quantized latents of raw images."""
        return self.features_of(self.stored(images_BKHWC, mesh), None)

    def stored(self, images_BKHWC: UInt8[Array, "B K H W 3"], mesh: Mesh | None = None) -> Float[Array, "B K N 1"]:
        """Indices of codes: whole numbers up to 2²⁴, which float32 represents."""
        del mesh
        return self.indices(images_BKHWC).astype(jnp.float32)[..., None]

    def features_of(self, stored_BKNS: Float[Array, "B K N 1"], key: jax.Array | None) -> Float[Array, "B K N E"]:
        """The codes of indices."""
        del key
        indices = self.indices_of(stored_BKNS)
        return self.codes(indices.reshape(-1, self.tokens)).reshape(*indices.shape, self.width)

    def indices_of(self, stored_BKNS: Float[Array, "B K N 1"]) -> Int[Array, "B K N"]:
        """The indices that are stored."""
        return stored_BKNS[..., 0].astype(jnp.int32)

    def indices(self, images_BKHWC: UInt8[Array, "B K H W 3"]) -> Int[Array, "B K N"]:
        """The codes of raw images, in reading order."""
        _, indices = self.encode(to_signed(images_BKHWC, self.config.image_size))
        return indices.reshape(*images_BKHWC.shape[:2], self.tokens)

    def encode(self, images_BHWC: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B h w E"], Int[Array, "B N"]]:
        """The quantized latents of images in [−1, 1], and their indices in reading order."""
        quantized = self.quantize(self.pre_quantization(images_BHWC))
        return quantized.latent, quantized.indices

    def pre_quantization(self, images_BHWC: Float[Array, "B H W 3"]) -> Float[Array, "B h w E"]:
        """Continuous latents of images in [−1, 1], of any length, float32."""
        return self.quant_conv(self.encoder(images_BHWC)).astype(jnp.float32)

    def quantize(self, continuous_BHWE: Float[Array, "B h w E"]) -> Quantized:
        """The nearest code of each latent's direction: between unit vectors, the one of the largest product."""
        normed = unit(continuous_BHWE)
        table = unit(self.codebook[...])
        # Codes lie close together: the products need all of float32, also where matrix units would round their inputs.
        product = jnp.einsum("bhwe,ve->bhwv", normed, table, precision=jax.lax.Precision.HIGHEST)
        indices = jnp.argmax(product, axis=-1)
        return Quantized(normed, table[indices], indices.reshape(indices.shape[0], -1).astype(jnp.int32))

    def codes(self, indices_BN: Int[Array, "B N"]) -> Float[Array, "B N E"]:
        """The unit vectors of indices."""
        return unit(self.codebook[...][indices_BN])

    def decode(self, indices_BN: Int[Array, "B N"]) -> Float[Array, "B H W 3"]:
        """Images, nominally in [−1, 1], of the indices of a square grid."""
        return self.decode_latent(self.to_grid(self.codes(indices_BN)))

    def decode_images(self, indices_BN: Int[Array, "B N"]) -> UInt8[Array, "B H W 3"]:
        """Images of the indices of a square grid."""
        return to_uint8(self.decode(indices_BN))

    def decode_latent(self, latent_BHWE: Float[Array, "B h w E"]) -> Float[Array, "B H W 3"]:
        """Images, nominally in [−1, 1], of quantized latents."""
        return self.decode_grid(latent_BHWE)
