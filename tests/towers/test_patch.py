"""The patch tower: a linear map of raw patches whose two parts, mean colour and detail, have gains of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unihetero_jax.towers.patch.config import PatchConfig
from unihetero_jax.towers.patch.network import PatchTower, patchify, unpatchify
from unihetero_jax.towers.pixels.config import PixelsConfig
from unihetero_jax.towers.pixels.network import RawPatches

CONFIG = PatchConfig(patch_size=4, width=6, pixel_mean=0.25, pixel_std=0.5, detail_gain=3.0, color_gain=2.0)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)


def tower(**changes):
    return PatchTower(dataclasses.replace(CONFIG, **changes), 8, rngs=nnx.Rngs(0))


def test_features_are_the_formula_patch_by_patch(images):
    made = tower()
    features = np.asarray(made(jnp.asarray(images)))
    assert features.shape == (2, 3, 4, 6)
    patch = images[1, 2, 4:, :4].astype(np.float64)  # the third patch in reading order
    pixels = (patch.reshape(-1, 3) / 255 - 0.25) / 0.5
    color = pixels.mean(axis=0)
    expected = 3.0 * (pixels - color).reshape(-1) @ np.asarray(made.detail[...])
    expected += 2.0 * color @ np.asarray(made.color[...]) + np.asarray(made.bias[...])
    np.testing.assert_allclose(features[1, 2, 2], expected, rtol=1e-5, atol=1e-5)


def test_a_patch_of_one_colour_has_no_detail():
    plain = jnp.full((1, 1, 8, 8, 3), 77, jnp.uint8)
    np.testing.assert_allclose(tower(detail_gain=100.0)(plain), tower()(plain), atol=1e-4)
    assert np.abs(np.asarray(tower(color_gain=100.0)(plain)) - np.asarray(tower()(plain))).max() > 1


def test_the_mean_colour_does_not_move_the_detail_kernel():
    made = tower()
    graph, params = nnx.split(made)
    plain = jnp.full((1, 1, 8, 8, 3), 77, jnp.uint8)
    grads = jax.grad(lambda p: jnp.sum(jnp.square(nnx.merge(graph, p)(plain))))(params)
    loudest = np.abs(np.asarray(grads["color"][...])).max()
    assert loudest > 0.1
    np.testing.assert_allclose(grads["detail"][...], 0, atol=1e-4 * loudest)


def test_unpatchify_undoes_patchify(images):
    patches = patchify(jnp.asarray(images), 4)
    np.testing.assert_array_equal(unpatchify(patches[:, 0], 4, 8), images[:, 0])
    raw = RawPatches(PixelsConfig(patch_size=4), 8, rngs=nnx.Rngs(0))
    assert (raw.tokens, raw.width) == (4, 48)
    np.testing.assert_array_equal(raw.decode_images(raw(jnp.asarray(images))[:, 1]), images[:, 1])
