"""Paper B's distortion: a fixed affine map of features, x·A + b, that moves an input space away from an output space.

arXiv 2505.23043: A = Q · diag(U[1 − s, 1 + s]), Q from the QR decomposition of a uniform random matrix, b ~ U[−s, s],
at strength s. Q depends on the seed alone, so it is the same at every strength.

F feature width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unihetero_jax.config import DistortionConfig


def affine_map(config: DistortionConfig, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A [F, F] and b [F], float64.

    One random stream a part, from (seed, part): a part is the same whichever others are on, and the scales and b of
    two strengths are proportional. The signs of Q are those that make R's diagonal positive, which every LAPACK agrees
    on.
    """
    rotation, scales, shift = (np.random.default_rng([config.seed, part]) for part in range(3))
    matrix = np.eye(width)
    if config.rotation:
        orthogonal, upper = np.linalg.qr(rotation.uniform(size=(width, width)))
        matrix = orthogonal * np.where(np.diag(upper) < 0, -1.0, 1.0)
    matrix = matrix * (1.0 + config.strength * scales.uniform(-1.0, 1.0, width))
    translation = config.strength * shift.uniform(-1.0, 1.0, width)
    return matrix, translation if config.translation else np.zeros(width)


def distort(features: Float[Array, "*any F"], config: DistortionConfig | None) -> Float[Array, "*any F"]:
    """x·A + b in float32; A and b are constants of the compiled step."""
    if config is None or not config.strength:
        return features
    matrix, translation = affine_map(config, features.shape[-1])
    # Default precision on accelerators would itself be a distortion.
    turned = jnp.matmul(features, jnp.asarray(matrix, jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return turned + jnp.asarray(translation, jnp.float32)
