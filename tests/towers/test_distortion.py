"""Paper B's affine map of features: its parts, by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from unihetero_jax.config import DistortionConfig
from unihetero_jax.config.tree import check
from unihetero_jax.errors import UsageError
from unihetero_jax.towers.common.distortion import affine_map, distort

FULL = DistortionConfig(strength=0.3, rotation=True, translation=True, seed=3)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(2, 3, 5, 8)).astype(np.float32)


@pytest.mark.parametrize("rotation", [True, False])
def test_strength_zero_is_off_and_exactly_the_identity(features, rotation):
    none = DistortionConfig(strength=0.0, rotation=rotation, translation=True)
    np.testing.assert_array_equal(distort(jnp.asarray(features), none), features)
    np.testing.assert_array_equal(distort(jnp.asarray(features), DistortionConfig()), features)
    np.testing.assert_array_equal(distort(jnp.asarray(features), None), features)
    faint = dataclasses.replace(none, strength=1e-3)
    assert (np.abs(distort(jnp.asarray(features), faint) - features).max() > 0.5) == rotation


def test_the_map_without_strength_and_rotation_is_the_identity():
    matrix, translation = affine_map(DistortionConfig(strength=0.0, rotation=False, translation=True), 8)
    np.testing.assert_array_equal(matrix, np.eye(8))
    np.testing.assert_array_equal(translation, 0)


def test_features_are_multiplied_from_the_left_and_shifted(features):
    matrix, translation = affine_map(FULL, 8)
    expected = np.einsum("bknf,fg->bkng", features.astype(np.float64), matrix) + translation
    np.testing.assert_allclose(distort(jnp.asarray(features), FULL), expected, atol=1e-5)


def test_the_matrix_is_a_rotation_times_scales_within_the_strength():
    matrix, translation = affine_map(FULL, 64)
    scales = np.linalg.norm(matrix, axis=0)
    assert 0.7 <= scales.min() < 0.75 < 1.25 < scales.max() <= 1.3
    rotation = matrix / scales
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(64), atol=1e-12)
    assert np.abs(rotation - np.eye(64)).max() > 0.5
    assert -0.3 <= translation.min() < -0.2 < 0.2 < translation.max() <= 0.3


def test_the_rotation_is_that_of_the_first_columns_of_a_uniform_matrix():
    """Gram–Schmidt by hand on the same draws: uniform in [0, 1), R's diagonal positive."""
    drawn = np.random.default_rng([3, 0]).uniform(size=(8, 8))
    first = drawn[:, 0] / np.linalg.norm(drawn[:, 0])
    second = drawn[:, 1] - first * (first @ drawn[:, 1])
    rotation, _ = affine_map(dataclasses.replace(FULL, strength=0.0), 8)
    np.testing.assert_allclose(rotation[:, 0], first, atol=1e-12)
    np.testing.assert_allclose(rotation[:, 1], second / np.linalg.norm(second), atol=1e-12)


def test_the_rotation_is_the_same_at_every_strength_and_the_rest_grows_with_it():
    weak, strong = (affine_map(dataclasses.replace(FULL, strength=s), 8) for s in (0.1, 0.3))
    rotation, _ = affine_map(dataclasses.replace(FULL, strength=0.0), 8)
    np.testing.assert_allclose(strong[0] - rotation, 3 * (weak[0] - rotation), atol=1e-12)
    np.testing.assert_allclose(strong[1], 3 * weak[1], atol=1e-12)


def test_parts_are_optional_and_independent():
    matrix, translation = affine_map(dataclasses.replace(FULL, translation=False), 8)
    np.testing.assert_array_equal(matrix, affine_map(FULL, 8)[0])
    np.testing.assert_array_equal(translation, 0)
    scales, _ = affine_map(dataclasses.replace(FULL, rotation=False), 8)
    np.testing.assert_array_equal(scales, np.diag(np.diag(scales)))
    np.testing.assert_allclose(np.diag(scales), np.linalg.norm(matrix, axis=0), atol=1e-12)
    assert np.abs(affine_map(dataclasses.replace(FULL, seed=4), 8)[0] - matrix).max() > 0.1


@pytest.mark.parametrize("strength", [-0.1, 1.0])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(UsageError, match=r"config.model.distortion.strength=.*below 1"):
        check(DistortionConfig(strength=strength), "config.model.distortion")
