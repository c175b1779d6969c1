"""What the image autoencoders are trained by: each loss as Σ weight · loss over images, to be divided by Σ weight once.

Reconstruction, codebook and commitment (VQ-VAE, arXiv 1711.00937, equation 3) or the posterior's divergence. There is
neither a perceptual (LPIPS) nor an adversarial loss: both need a second trained network, and small twins do without;
large ones would reconstruct more blurred than the published models.

B images, h and w the grid, N = h·w tokens, E latent width, V codes.
"""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unihetero_jax.towers.common.autoencoder.config import KLLossConfig, VQLossConfig
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.towers.vq16.network import VQ16
from unihetero_jax.towers.vq16.network import unit as unit_vectors

Scalars = dict[str, jax.Array]


def vq_coefficients(config: VQLossConfig) -> dict[str, float]:
    """The factor of each of ``vq_loss_sums`` in the loss."""
    always = {"l1": config.l1, "l2": config.l2, "codebook": config.codebook, "commitment": config.commitment}
    return always | _asked_for({"detail": config.detail, "unused": config.unused})


def kl_coefficients(config: KLLossConfig) -> dict[str, float]:
    """The factor of each of ``kl_loss_sums`` in the loss."""
    return {"l1": config.l1, "l2": config.l2, "kl": config.kl} | _asked_for({"detail": config.detail})


def combine(coefficients: dict[str, float], sums: Scalars, weight: jax.Array) -> jax.Array:
    """Σ coefficient · sum / weight; 0 where there is no weight."""
    total = sum((factor * sums[name] for name, factor in coefficients.items()), start=jnp.float32(0.0))
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def _asked_for(factors: dict[str, float]) -> dict[str, float]:
    return {name: factor for name, factor in factors.items() if factor}


def vq_loss_sums(
    model: VQ16,
    images_BHWC: Float[Array, "B H W 3"],
    weight_B: Float[Array, " B"],
    optional: Collection[str] = (),
    continuous_B: Bool[Array, " B"] | None = None,
) -> tuple[Scalars, jax.Array, Int[Array, "B N"]]:
    """Losses of images in [−1, 1] through the codebook.

    The decoder's gradient reaches the encoder as if its unit latent had not been quantized (straight through). Both
    distances are means over a latent's channels, between unit vectors, as in LlamaGen.

    Args:
      model: the autoencoder.
      images_BHWC: the images.
      weight_B: of each image.
      optional: losses besides the ones that are always there.
      continuous_B: images that are decoded from their unit latents; codes are chosen for them all the same.

    Returns:
      Σ weight · loss of ``l1`` and ``l2`` (means over pixels), ``codebook`` (moves codes to latents) and ``commitment``
      (moves latents to codes); of those in ``optional``, ``detail`` (as for ``kl_loss_sums``) and ``unused``; Σ weight;
      and the indices, for ``code_counts``.
    """
    unit, latent, indices = model.quantize(model.pre_quantization(images_BHWC))
    rounding = jax.lax.stop_gradient(latent - unit)
    if continuous_B is not None:
        rounding = jnp.where(continuous_B[:, None, None, None], 0.0, rounding)
    decoded = model.decode_latent(unit + rounding)
    losses = _reconstruction(decoded, images_BHWC, optional) | {
        "codebook": _per_image(jnp.square(latent - jax.lax.stop_gradient(unit))),
        "commitment": _per_image(jnp.square(unit - jax.lax.stop_gradient(latent))),
    }
    if "unused" in optional:
        losses["unused"] = jnp.broadcast_to(_unused(model, unit, indices, weight_B), weight_B.shape)
    return _sums(losses, weight_B), jnp.sum(weight_B), indices


def kl_loss_sums(
    model: KL16,
    images_BHWC: Float[Array, "B H W 3"],
    weight_B: Float[Array, " B"],
    key: jax.Array,
    optional: Collection[str] = (),
) -> tuple[Scalars, jax.Array]:
    """Losses of images in [−1, 1] through a sample of their posterior.

    Returns:
      Σ weight · loss of ``l1`` and ``l2`` (means over pixels) and ``kl``, and Σ weight. ``kl`` is the divergence from a
      standard normal, summed over an image's latents (arXiv 1312.6114, appendix B) and divided by the number of its
      pixel values: it keeps the ratio to the reconstruction that the sum of both over an image would have. If it is in
      ``optional``, ``detail``: the mean squared error of the differences between neighbors, down and across.
    """
    mean, logvar = model.posterior(images_BHWC)
    decoded = model.decode(model.sample(key, mean, logvar))
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    values = images_BHWC[0].size
    losses = _reconstruction(decoded, images_BHWC, optional) | {"kl": jnp.sum(divergence, axis=(1, 2, 3)) / values}
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


def _unused(model: VQ16, unit_BHWE: jax.Array, indices_BN: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Mean over codes of the squared distance to the nearest latent, of the codes that no latent of the batch chose.

    A code that is never chosen has no other gradient. Pulled among the latents it soon is chosen: the anchored codes of
    arXiv 2307.15139, section 3.2, as a loss, so that parameters still change by the optimizer alone.
    """
    table = unit_vectors(model.codebook[...])
    latents_XE = jax.lax.stop_gradient(unit_BHWE.reshape(-1, unit_BHWE.shape[-1]))
    present_X = jnp.repeat(weight_B > 0, indices_BN.shape[1])
    product_VX = jnp.where(present_X, jnp.einsum("ve,xe->vx", table, latents_XE), -jnp.inf)
    distance_V = jnp.sum(jnp.square(table - latents_XE[jnp.argmax(product_VX, axis=1)]), axis=-1)
    return jnp.mean(distance_V * (code_counts(indices_BN, weight_B, len(table)) == 0))


def _reconstruction(decoded_BHWC: jax.Array, images_BHWC: jax.Array, optional: Collection[str]) -> Scalars:
    error = decoded_BHWC - images_BHWC
    losses = {"l1": _per_image(jnp.abs(error)), "l2": _per_image(jnp.square(error))}
    if "detail" in optional:
        down, across = (_per_image(jnp.square(jnp.diff(error, axis=axis))) for axis in (1, 2))
        losses["detail"] = down + across
    return losses


def _per_image(x_BHWC: jax.Array) -> jax.Array:
    return jnp.mean(x_BHWC, axis=(1, 2, 3))


def _sums(losses: Scalars, weight_B: jax.Array) -> Scalars:
    return {name: jnp.sum(loss_B * weight_B) for name, loss_B in losses.items()}
