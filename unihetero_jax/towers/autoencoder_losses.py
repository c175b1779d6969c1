"""What the image autoencoders are trained by: each loss as Σ weight · loss over images, to be divided by Σ weight once.

Reconstruction, codebook and commitment (VQ-VAE, arXiv 1711.00937, equation 3) or the posterior's divergence. There is
neither a perceptual (LPIPS) nor an adversarial loss: both need a second trained network, and small twins do without;
large ones would reconstruct more blurred than the published models.

B images, h and w the grid, N = h·w tokens, E latent width, V codes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unihetero_jax.towers.autoencoder_config import KLLossConfig, VQLossConfig
from unihetero_jax.towers.kl16 import KL16
from unihetero_jax.towers.vq16 import VQ16

Scalars = dict[str, jax.Array]


def vq_coefficients(config: VQLossConfig) -> dict[str, float]:
    """The factor of each of ``vq_loss_sums`` in the loss."""
    return {"l1": config.l1, "l2": config.l2, "codebook": config.codebook, "commitment": config.commitment}


def kl_coefficients(config: KLLossConfig) -> dict[str, float]:
    """The factor of each of ``kl_loss_sums`` in the loss."""
    return {"l1": config.l1, "l2": config.l2, "kl": config.kl}


def combine(coefficients: dict[str, float], sums: Scalars, weight: jax.Array) -> jax.Array:
    """Σ coefficient · sum / weight; 0 where there is no weight."""
    total = sum((factor * sums[name] for name, factor in coefficients.items()), start=jnp.float32(0.0))
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def vq_loss_sums(
    model: VQ16, images_BHWC: Float[Array, "B H W 3"], weight_B: Float[Array, " B"]
) -> tuple[Scalars, jax.Array, Int[Array, "B N"]]:
    """Losses of images in [−1, 1] through the codebook.

    The decoder's gradient reaches the encoder as if its unit latent had not been quantised (straight through). Both
    distances are means over a latent's channels, between unit vectors, as in LlamaGen.

    Returns:
      Σ weight · loss of ``l1`` and ``l2`` (means over pixels), ``codebook`` (moves codes to latents) and ``commitment``
      (moves latents to codes); Σ weight; and the indices, for ``code_counts``.
    """
    unit, latent, indices = model.quantize(model.pre_quantization(images_BHWC))
    decoded = model.decode_latent(unit + jax.lax.stop_gradient(latent - unit))
    losses = _reconstruction(decoded, images_BHWC) | {
        "codebook": _per_image(jnp.square(latent - jax.lax.stop_gradient(unit))),
        "commitment": _per_image(jnp.square(unit - jax.lax.stop_gradient(latent))),
    }
    return _sums(losses, weight_B), jnp.sum(weight_B), indices


def kl_loss_sums(
    model: KL16, images_BHWC: Float[Array, "B H W 3"], weight_B: Float[Array, " B"], key: jax.Array
) -> tuple[Scalars, jax.Array]:
    """Losses of images in [−1, 1] through a sample of their posterior.

    Returns:
      Σ weight · loss of ``l1`` and ``l2`` (means over pixels) and ``kl``, and Σ weight. ``kl`` is the divergence from a
      standard normal, summed over an image's latents (arXiv 1312.6114, appendix B) and divided by the number of its
      pixel values: it keeps the ratio to the reconstruction that the sum of both over an image would have.
    """
    mean, logvar = model.posterior(images_BHWC)
    decoded = model.decode(model.sample(key, mean, logvar))
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    values = images_BHWC[0].size
    losses = _reconstruction(decoded, images_BHWC) | {"kl": jnp.sum(divergence, axis=(1, 2, 3)) / values}
    return _sums(losses, weight_B), jnp.sum(weight_B)


def code_counts(indices_BN: Int[Array, "B N"], weight_B: Float[Array, " B"], codes: int) -> Float[Array, " V"]:
    """How often each code was chosen, [V]; counts of several batches add up."""
    weight_BN = jnp.broadcast_to(weight_B[:, None], indices_BN.shape)
    return jnp.zeros(codes, jnp.float32).at[indices_BN].add(weight_BN)


def codebook_use(counts_V: Float[Array, " V"]) -> Scalars:
    """``perplexity``: exp of the entropy of the chosen codes, 1 to V; ``used``: share of codes chosen at all."""
    total = jnp.sum(counts_V)
    share = counts_V / jnp.where(total > 0, total, 1.0)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0))
    return {"perplexity": jnp.exp(entropy), "used": jnp.mean(counts_V > 0)}


def _reconstruction(decoded_BHWC: jax.Array, images_BHWC: jax.Array) -> Scalars:
    error = decoded_BHWC - images_BHWC
    return {"l1": _per_image(jnp.abs(error)), "l2": _per_image(jnp.square(error))}


def _per_image(x_BHWC: jax.Array) -> jax.Array:
    return jnp.mean(x_BHWC, axis=(1, 2, 3))


def _sums(losses: Scalars, weight_B: jax.Array) -> Scalars:
    return {name: jnp.sum(loss_B * weight_B) for name, loss_B in losses.items()}
