"""The patch embedding in two parts is one linear map, and is stored as such."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unihetero_jax.towers.common.vit.split_patches import SplitPatches, fold
from unihetero_jax.towers.siglip.config import SigLIPSizes
from unihetero_jax.towers.siglip.network import SigLIP

SMALL = SigLIPSizes(width=16, layers=1, heads=2, mlp_width=32, patch_size=8, image_size=16)


def test_folded_it_is_the_published_tower():
    trained = SigLIP(SMALL, rngs=nnx.Rngs(0))
    trained.patch = SplitPatches(SMALL, rngs=nnx.Rngs(1))
    params = nnx.to_pure_dict(nnx.state(trained, nnx.Param))
    published = SigLIP(SMALL, rngs=nnx.Rngs(2))
    nnx.update(published, {**params, "patch": fold(params["patch"])})
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16, 3), dtype=np.uint8))
    np.testing.assert_allclose(published(images), trained(images), atol=1e-4)


def test_white_is_the_bias_and_color_and_detail_have_their_own_kernels():
    patches = SplitPatches(SMALL, rngs=nnx.Rngs(0))
    white = np.ones((8 * 8, 3), np.float32)
    flat, line = white - 0.5, white.copy()
    # As dark on one side as it is bright on the other: its mean is white.
    line[:8], line[8:16] = 0.5, 1.5

    def told(pixels):
        return np.asarray(patches(jnp.asarray(pixels.reshape(1, 1, -1))))[0, 0]

    np.testing.assert_allclose(told(white), patches.bias[...], atol=1e-6)
    before = {"flat": told(flat), "line": told(line)}
    patches.detail[...] = jnp.zeros_like(patches.detail[...])
    np.testing.assert_allclose(told(flat), before["flat"], atol=1e-5)
    np.testing.assert_allclose(told(line), patches.bias[...], atol=1e-5)
    assert np.abs(before["line"] - told(line)).max() > 0.1
