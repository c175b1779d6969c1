"""The attribute classifier of watches: hands along the dial, icon and battery in the corners, color of the disc.

The geometry of the face is built in, what things look like there is learned. The dial is unrolled into angles and
radii, and one network runs round it, so that a hand that is learned in one direction is known in all. One network reads
each corner. Every picture of a watch has its parts where the data's generator puts them, also a drawn one.

B images, S pixels per side, A angles, R radii, C channels, W and H samples across and down a corner.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from unihetero_jax.parallel import initializers
from unihetero_jax.towers.common.attribute_classifier.config import AttributeClassifierConfig

CONTENTS = 5
"""What a corner may show: nothing, one of three weathers, or the battery."""

CHARGES = 101

# The face, in shares of the image's side: radius of the dial, and the upper left points of what sits in a corner.
DIAL_RADIUS = 0.4
CORNERS = ((10 / 224, 10 / 224), (174 / 224, 10 / 224), (10 / 224, 194 / 224), (174 / 224, 194 / 224))
# What is looked at there, from a little before these points on: an icon is 30 / 224 wide and high, a battery with its
# text 50 / 224 wide.
_WIDTH, _HEIGHT, _MARGIN = 54 / 224, 36 / 224, 4 / 224
# Contrast that counts as none, of a signed image: below it there is only noise to be blown up.
_FAINT = 0.02


class Reading(NamedTuple):
    """Scores of what B images show: logits, but for the color.

    ``time`` [B, 12, 60]: of hour and minute together. ``second`` [B, 60]. ``content`` [B, 4, 5]: of each corner.
    ``charge`` [B, 4, 101]: of a battery in each corner. ``color`` [B, 3]: of the disc, 0 to 1. ``features`` [B, F]:
    what the scores are made of, pooled over the dial and over the corners.
    """

    time: jax.Array
    second: jax.Array
    content: jax.Array
    charge: jax.Array
    color: jax.Array
    features: jax.Array


class AttributeClassifier(nnx.Module):
    """The attribute classifier.

    Args:
      config: sizes.
      rngs: for initialization.
    """

    def __init__(self, config: AttributeClassifierConfig, *, rngs: nnx.Rngs):
        dtype: Any = jnp.dtype(config.dtype)
        self.config = config
        seen, channels, hidden = 2 * config.reach + 1, config.channels, config.hidden
        into, out = (None, "channels"), ("channels", None)
        self.dial_in = _linear(seen * 3 * config.radii, channels, into, dtype, rngs)
        self.dial = nnx.List(
            [_linear(seen * channels, channels, into, dtype, rngs, silent=True) for _ in range(config.layers - 1)]
        )
        self.hands = _linear(channels, 3, out, dtype, rngs)
        across, down = _corner_samples(config.image_size)
        self.corner_in = _linear(3 * across * down, hidden, into, dtype, rngs)
        self.corner = _linear(hidden, hidden, into, dtype, rngs)
        self.content = _linear(hidden, CONTENTS, out, dtype, rngs)
        self.charge = _linear(hidden, CHARGES, out, dtype, rngs)
        self.color = _linear(6 * config.radii, 3, out, dtype, rngs, silent=True)

    def __call__(self, images_BSSC: Float[Array, "B S S 3"]) -> Reading:
        """What images in [−1, 1] show."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        rows = images_BSSC.shape[0]
        dial_BARC = _sample(images_BSSC, *_dial_points(config)).reshape(rows, config.angles, config.radii, 3)
        # White hands on any color: without the mean color, and at equal contrast, they all look alike.
        centered = dial_BARC - jnp.mean(dial_BARC, axis=(1, 2), keepdims=True)
        contrast = jnp.sqrt(jnp.mean(jnp.square(centered), axis=(1, 2, 3), keepdims=True) + _FAINT**2)
        x_BAC = self.dial_in(self._around((centered / contrast).reshape(rows, config.angles, -1)).astype(dtype))
        for layer in self.dial:
            x_BAC = x_BAC + layer(self._around(jax.nn.silu(x_BAC)))
        x_BAC = jax.nn.silu(x_BAC)
        hour_BA, minute_BA, second_BA = jnp.moveaxis(self.hands(x_BAC).astype(jnp.float32), -1, 0)
        step = config.angles // 60
        time = (hour_BA @ _hour_directions(config.angles)).reshape(rows, 12, 60) + minute_BA[:, None, ::step]

        corners_BKP = _sample(images_BSSC, *_corner_points(config.image_size)).reshape(rows, len(CORNERS), -1)
        corner = jax.nn.silu(self.corner_in((1.0 - corners_BKP).astype(dtype)))
        corner = corner + jax.nn.silu(self.corner(corner))

        spread = jnp.concatenate([jnp.mean(dial_BARC, axis=1), jnp.std(dial_BARC, axis=1)], axis=-1).reshape(rows, -1)
        # Hands are shortest where the radius is greatest; the rim itself is half white.
        plain = jnp.median(dial_BARC[:, :, config.radii // 2 : -1], axis=(1, 2))
        color = (plain + self.color(spread.astype(dtype)).astype(jnp.float32) + 1.0) / 2.0
        pooled = [jnp.mean(x_BAC, axis=1), jnp.mean(corner, axis=1)]
        return Reading(
            time,
            second_BA[:, ::step],
            self.content(corner).astype(jnp.float32),
            self.charge(corner).astype(jnp.float32),
            color,
            jnp.concatenate(pooled, axis=-1).astype(jnp.float32),
        )

    def _around(self, x_BAX: jax.Array) -> jax.Array:
        """Each angle's features beside those of its neighbors; the dial has no end."""
        reach = self.config.reach
        return jnp.concatenate([jnp.roll(x_BAX, shift, axis=1) for shift in range(-reach, reach + 1)], axis=-1)


def _linear(
    size_in: int, size_out: int, axes: tuple[str | None, ...], dtype: Any, rngs: nnx.Rngs, *, silent: bool = False
) -> nnx.Linear:
    """A linear map with float32 parameters, computed in ``dtype``; ``silent``: it starts with zeros."""
    return nnx.Linear(
        size_in,
        size_out,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=initializers.zeros(*axes) if silent else initializers.fan_in(*axes),
        bias_init=initializers.zeros(axes[1]),
        rngs=rngs,
    )


def _hour_directions(angles: int) -> np.ndarray:
    """[A, 720]: how much of each direction the hour hand has at each hour and minute, between two of them linearly."""
    weights = np.zeros((angles, 12, 60), np.float32)
    for hour in range(12):
        for minute in range(60):
            place = (hour + minute / 60) / 12 * angles
            low = int(place)
            weights[low, hour, minute] = 1 - (place - low)
            weights[(low + 1) % angles, hour, minute] += place - low
    return weights.reshape(angles, 720)


def _dial_points(config: AttributeClassifierConfig) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of each angle and radius, in pixels; angles clockwise from twelve o'clock."""
    angle = 2 * np.pi * np.arange(config.angles)[:, None] / config.angles
    radius = DIAL_RADIUS * config.image_size * (np.arange(config.radii) + 0.5) / config.radii
    center = (config.image_size - 1) / 2
    return (center + radius * np.sin(angle)).ravel(), (center - radius * np.cos(angle)).ravel()


def _corner_samples(side: int) -> tuple[int, int]:
    return max(2, round(_WIDTH * side)), max(2, round(_HEIGHT * side))


def _corner_points(side: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the samples of every corner, in pixels, row by row; the same places relative to what is shown there."""
    across, down = _corner_samples(side)
    x = [(left - _MARGIN + _WIDTH * (np.arange(across) + 0.5) / across) * side - 0.5 for left, _ in CORNERS]
    y = [(top - _MARGIN + _HEIGHT * (np.arange(down) + 0.5) / down) * side - 0.5 for _, top in CORNERS]
    return np.ravel([np.tile(row, down) for row in x]), np.ravel([np.repeat(column, across) for column in y])


def _sample(images_BSSC: jax.Array, x: np.ndarray, y: np.ndarray) -> jax.Array:
    """Pixels [B, P, 3] at P places, between pixels bilinearly; beyond the edge as at the edge."""
    side = images_BSSC.shape[1]
    x, y = np.clip(x, 0, side - 1), np.clip(y, 0, side - 1)
    left, top = np.minimum(x.astype(int), side - 2), np.minimum(y.astype(int), side - 2)
    right, low = x - left, y - top
    flat = images_BSSC.reshape(images_BSSC.shape[0], side * side, 3)
    total = jnp.zeros((), images_BSSC.dtype)
    for down, across, weight in (
        (0, 0, (1 - low) * (1 - right)),
        (0, 1, (1 - low) * right),
        (1, 0, low * (1 - right)),
        (1, 1, low * right),
    ):
        total = total + flat[:, (top + down) * side + left + across] * weight[:, None].astype(np.float32)
    return total
