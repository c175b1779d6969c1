"""Resizing and normalizing, as the publishers of the towers do it, inside the compiled step.

A resize is two products with small matrices made in NumPy, one a side. ``jax.image.resize`` has neither of torch's
bicubic kernels (a = −0.75 with repeated borders; without antialiasing), and rounds nothing.

B rows, K images, H·W pixels of the image, S pixels per side of what the tower sees.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unihetero_jax.towers.common.vit.config import ViTConfig


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel of parameter ``a`` (IEEE TASSP 29(6), 1981, equation 4 generalized)."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def resize_matrix(
    size_in: int, size_out: int, *, antialias: bool, kernel: Literal["bicubic", "bilinear"] = "bicubic"
) -> np.ndarray:
    """The matrix [size_out, size_in], float64, that resizes one side; pixel i's center is at i + 0.5.

    Without ``antialias``: torch's ``interpolate(align_corners=False)``: for bicubic a = −0.75, and what lies outside
    repeats the border. With it: Pillow's, and torch's with ``antialias=True``: a = −0.5, a kernel as much wider as the
    image shrinks, and what lies outside has no weight.
    """
    scale = size_in / size_out
    centers = (np.arange(size_out) + 0.5) * scale - 0.5
    matrix = np.zeros((size_out, size_in))
    if antialias:
        stretch = max(scale, 1.0)
        distance = (np.arange(size_in)[None] - centers[:, None]) / stretch
        matrix = np.maximum(1 - np.abs(distance), 0) if kernel == "bilinear" else _cubic(distance, -0.5)
        return matrix / matrix.sum(axis=1, keepdims=True)
    first = np.floor(centers).astype(int)
    for tap in (0, 1) if kernel == "bilinear" else (-1, 0, 1, 2):
        distance = centers - (first + tap)
        weight = np.maximum(1 - np.abs(distance), 0) if kernel == "bilinear" else _cubic(distance, -0.75)
        np.add.at(matrix, (np.arange(size_out), np.clip(first + tap, 0, size_in - 1)), weight)
    return matrix


def resize(
    x: Float[Array, "*any H W C"], rows: np.ndarray, columns: np.ndarray, *, whole_levels: bool = False
) -> Float[Array, "*any h w C"]:
    """Resizes with one matrix a side, columns first, in float32.

    ``whole_levels``: each of the two results is rounded (half up) and clipped to 0 … 255, as Pillow's are.
    """
    # Default precision would lose brightness levels on accelerators; the products are tiny.
    precision = jax.lax.Precision.HIGHEST
    for contraction, matrix in (("vw,...hwc->...hvc", columns), ("vh,...hwc->...vwc", rows)):
        x = jnp.einsum(contraction, jnp.asarray(matrix, jnp.float32), x, precision=precision)
        x = jnp.clip(jnp.floor(x + 0.5), 0, 255) if whole_levels else x
    return x


def exact_weights(matrix: np.ndarray) -> np.ndarray:
    """Weights in multiples of 2⁻¹⁵, each row with sum 1.

    Times whole levels, every partial sum then fits float32's 24 bits: what is rounded to a level is the same in
    whatever order a compiler adds, on any mesh.
    """
    parts = np.round(matrix * 2**15)
    parts[np.arange(len(parts)), parts.argmax(axis=1)] += 2**15 - parts.sum(axis=1)
    return parts / 2**15


def _image_matrix(size: int, shorter: int, config: ViTConfig) -> np.ndarray:
    """Resizes and cuts one side of an image: ``size`` pixels of an image whose shorter side has ``shorter``."""
    if not config.shortest_edge:
        return exact_weights(resize_matrix(size, config.side, antialias=True))
    resized = config.shortest_edge * size // shorter
    start = (resized - config.side) // 2
    return exact_weights(resize_matrix(size, resized, antialias=True)[start : start + config.side])


def prepare(images: UInt8[Array, "*any H W 3"], config: ViTConfig) -> Float[Array, "*any S S 3"]:
    """What the tower sees: bicubic with antialiasing, cut to a square, normalized by channel.

    The steps are those of the image processors of ``transformers``: ``resample`` is 3, bicubic, for all three
    families; DINOv2 and CLIP resize the shorter side and cut out the middle, SigLIP squeezes to a square.
    """
    height, width = images.shape[-3:-1]
    shorter = min(height, width)
    rows, columns = _image_matrix(height, shorter, config), _image_matrix(width, shorter, config)
    levels = resize(images.astype(jnp.float32), rows, columns, whole_levels=True)
    mean, std = config.pixel_mean, config.pixel_std
    return (levels / 255.0 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def resize_table(table_ND: Float[Array, "N D"], grid: tuple[int, int], *, antialias: bool) -> Float[Array, "M D"]:
    """A square grid's position table, in reading order, for another grid of (rows, columns)."""
    side = int(table_ND.shape[0] ** 0.5)
    if grid == (side, side):
        return table_ND
    rows, columns = (resize_matrix(side, size, antialias=antialias) for size in grid)
    square = table_ND.astype(jnp.float32).reshape(side, side, -1)
    return resize(square, rows, columns).reshape(grid[0] * grid[1], -1)
