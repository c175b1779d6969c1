"""The ``kl16`` tower: MAR's KL-16 (arXiv 2406.11838), images ↔ continuous latents with a Gaussian posterior.

B images (or rows), K images per row, H and W pixels, h and w the grid, N = h·w tokens, E latent channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.common.autoencoder.blocks import Autoencoder
from unihetero_jax.towers.common.autoencoder.config import KLConfig
from unihetero_jax.towers.common.autoencoder.images import to_signed, to_uint8

# As published: a variance outside e^±… is a network's blunder, and its exponential would overflow.
LOGVAR_RANGE = (-30.0, 20.0)


@TOWERS.register("kl16")
class KL16(Autoencoder):
    """Encoder, posterior and decoder. As a tower, its features are latents times ``config.latent_scale``."""

    def __init__(self, config: KLConfig, image_size: int = 0, *, rngs: nnx.Rngs):
        del image_size  # it resizes for itself
        super().__init__(config, config.latent)
        self.config = config
        self._make_encoder(config, 2 * config.latent, 2 * config.latent, rngs)
        self._make_decoder(config, config.latent, rngs)

    def __call__(self, images_BKHWC: UInt8[Array, "B K H W 3"], mesh: Mesh | None = None) -> Float[Array, "B K N E"]:
        """Scaled latents of raw images: the posterior's mean."""
        del mesh
        mean, _ = self.posterior(to_signed(images_BKHWC, self.config.image_size))
        return (mean * self.config.latent_scale).reshape(*images_BKHWC.shape[:2], self.tokens, self.width)

    def stored(self, images_BKHWC: UInt8[Array, "B K H W 3"], mesh: Mesh | None = None) -> Float[Array, "B K N S"]:
        """Mean and log variance side by side where the config samples, so that noise is drawn for all images alike."""
        if not getattr(self.config, "sample", False):
            return self(images_BKHWC, mesh)
        moments = self.posterior(to_signed(images_BKHWC, self.config.image_size))
        return jnp.concatenate(moments, axis=-1).reshape(*images_BKHWC.shape[:2], self.tokens, 2 * self.width)

    def features_of(self, stored_BKNS: Float[Array, "B K N S"], key: jax.Array | None) -> Float[Array, "B K N E"]:
        """Scaled latents: samples of the posterior where the config samples and there is a key, else its mean."""
        if not getattr(self.config, "sample", False):
            return stored_BKNS
        mean, logvar = jnp.split(stored_BKNS, 2, axis=-1)
        return (mean if key is None else self.sample(key, mean, logvar)) * self.config.latent_scale

    def posterior(
        self, images_BHWC: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B h w E"], Float[Array, "B h w E"]]:
        """Mean and logarithm of the variance of the latents of images in [−1, 1], float32."""
        moments = self.quant_conv(self.encoder(images_BHWC)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def sample(
        self, key: jax.Array, mean_BHWE: Float[Array, "B h w E"], logvar_BHWE: Float[Array, "B h w E"]
    ) -> Float[Array, "B h w E"]:
        """Latents drawn from a posterior."""
        return mean_BHWE + jnp.exp(0.5 * logvar_BHWE) * jax.random.normal(key, mean_BHWE.shape, jnp.float32)

    def decode(self, latent_BHWE: Float[Array, "B h w E"]) -> Float[Array, "B H W 3"]:
        """Images, nominally in [−1, 1], of latents that are not scaled."""
        return self.decode_grid(latent_BHWE)

    def decode_features(self, features_BNE: Float[Array, "B N E"]) -> Float[Array, "B H W 3"]:
        """Images of scaled latents of a square grid, such as the tower gives and a pixel head predicts."""
        return self.decode(self.to_grid(features_BNE) / self.config.latent_scale)

    def decode_images(self, features_BNE: Float[Array, "B N E"]) -> UInt8[Array, "B H W 3"]:
        """Images of scaled latents of a square grid."""
        return to_uint8(self.decode_features(features_BNE))
