"""Resizing as the publishers do it: images as Pillow, position tables as torch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.common.vit.preprocess import exact_weights, prepare, resize_matrix, resize_table
from unihetero_jax.towers.siglip.config import SigLIPSizes

SQUEEZED = SigLIPSizes(patch_size=8, image_size=24)


@pytest.fixture(scope="module")
def image():
    """Noise in front of a gradient, wider than high."""
    rng = np.random.default_rng(0)
    gradient = np.linspace(0, 255, 60)[None, :, None] * np.ones((40, 1, 3))
    return np.clip(gradient + rng.normal(0, 60, gradient.shape), 0, 255).astype(np.uint8)


def levels(image, config):
    """What ``prepare`` gives, back in levels of brightness, for a family that normalises by 0.5 and 0.5."""
    return (np.asarray(prepare(jnp.asarray(image), config)) * 0.5 + 0.5) * 255


@pytest.mark.parametrize("side", [24, 96])
def test_squeezing_is_pillows_bicubic(image, side):
    expected = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), np.float64)
    error = np.abs(levels(image, dataclasses.replace(SQUEEZED, input_size=side)) - expected)
    assert error.max() < 1.01  # Pillow's weights have 22 bits: what is nearly a tie may be rounded the other way
    assert (error > 0.01).mean() < 0.01


def test_the_middle_is_cut_out_of_the_resized_shorter_side(image):
    config = dataclasses.replace(SQUEEZED, shortest_edge=32)
    wide = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC), np.float64)
    assert np.abs(levels(image, config) - wide[4:28, 12:36]).max() < 1.01
    high = image.transpose(1, 0, 2)
    resized = np.asarray(Image.fromarray(high).resize((32, 48), Image.Resampling.BICUBIC), np.float64)
    assert np.abs(levels(high, config) - resized[12:36, 4:28]).max() < 1.01


def test_levels_are_the_same_in_whatever_order_they_are_added():
    """From 16 to 24 pixels many results lie half between two levels: float64, without rounding errors, is the judge."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    weights = exact_weights(resize_matrix(16, 24, antialias=True))
    np.testing.assert_array_equal(weights * 2**15 % 1, 0)
    np.testing.assert_array_equal(weights.sum(axis=1), 1)
    expected = noise.astype(np.float64)
    for contraction in ("vw,hwc->hvc", "vh,hwc->vwc"):
        expected = np.clip(np.floor(np.einsum(contraction, weights, expected) + 0.5), 0, 255)
    np.testing.assert_array_equal(np.round(levels(noise, SQUEEZED), 3), expected)


@pytest.mark.parametrize(
    ("family", "black", "white"),
    [
        ("siglip", (-1, -1, -1), (1, 1, 1)),
        ("dinov2", (-2.1179, -2.0357, -1.8044), (2.2489, 2.4286, 2.64)),
        ("clip", (-1.7923, -1.7521, -1.4802), (1.9303, 2.0749, 2.1459)),
    ],
)
def test_channels_are_normalised_as_published(family, black, white):
    config = TOWERS.config(family)(patch_size=8, image_size=24)
    plain = np.zeros((2, 3, 10, 10, 3), np.uint8)
    plain[1] = 255
    pixels = np.asarray(prepare(jnp.asarray(plain), config))
    assert pixels.shape == (2, 3, 24, 24, 3)
    np.testing.assert_allclose(pixels[0, 2, 5, 5], black, atol=1e-4)
    np.testing.assert_allclose(pixels[1, 0, 5, 5], white, atol=1e-4)


def test_bicubic_without_antialiasing_by_hand():
    """Doubling: pixel 3 of the result lies at 1.25, so its taps are −0.75's kernel at 1.25, 0.25, −0.75 and −1.75."""
    row = resize_matrix(5, 10, antialias=False)[3]
    np.testing.assert_allclose(row, [-0.10546875, 0.87890625, 0.26171875, -0.03515625, 0], atol=1e-12)
    # Pixel 0 lies at −0.25: two of its taps fall on the repeated border.
    row = resize_matrix(5, 10, antialias=False)[0]
    np.testing.assert_allclose(row, [-0.03515625 + 0.26171875 + 0.87890625, -0.10546875, 0, 0, 0], atol=1e-12)


def test_bilinear_by_hand():
    np.testing.assert_allclose(resize_matrix(3, 6, antialias=False, kernel="bilinear")[1], [0.75, 0.25, 0])
    thirds = resize_matrix(6, 2, antialias=True, kernel="bilinear")[0]
    np.testing.assert_allclose(thirds, np.array([2, 3, 2, 1, 0, 0]) / 8)


def test_the_tables_own_grid_is_left_alone():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(25, 3)), jnp.float32)
    assert resize_table(table, (5, 5), antialias=True) is table


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(3, 3), (16, 16), (37, 37), (7, 12), (2, 5)])
def test_resized_position_tables_are_torchs(grid, antialias):
    torch = pytest.importorskip("torch")
    side = 9
    table = np.random.default_rng(1).normal(size=(side * side, 4)).astype(np.float32)
    square = torch.from_numpy(table).reshape(1, side, side, 4).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        square, size=grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    expected = expected.permute(0, 2, 3, 1).reshape(-1, 4).numpy()
    got = np.asarray(resize_table(jnp.asarray(table), grid, antialias=antialias))
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
