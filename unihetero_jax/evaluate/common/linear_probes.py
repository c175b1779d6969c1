"""Linear probes of the attributes of watches, on vectors that a model computes from their images.

n images, F width of a vector, A columns of targets.

A probe is ridge regression (Hoerl & Kennard 1970) of one-hot labels, of sine and cosine of each hand's direction, and
of shares. The penalty of each target is the one of ``PENALTIES`` with the least leave-one-out error, which has a closed
form (PRESS: Allen 1974; Hastie, Tibshirani & Friedman, Elements of Statistical Learning, equation 7.64).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from unihetero_jax.data.smart_watch import POSITIONS, WEATHERS, Attributes

PENALTIES = np.logspace(-7, 2, 19)
"""Relative to the mean variance of the vectors' principal components."""

# Columns of each target. The hour hand moves between its marks; the minute is decoded first.
_COLUMNS = {
    "weather": len(WEATHERS),
    "weather_pos": len(POSITIONS),
    "battery_pos": len(POSITIONS),
    "battery": 1,
    "hour": 2,
    "minute": 2,
    "second": 2,
    "color": 3,
}
_ENDS = np.cumsum(list(_COLUMNS.values())).tolist()
_PARTS = {name: slice(end - size, end) for (name, size), end in zip(_COLUMNS.items(), _ENDS, strict=True)}

Vectors = Float[np.ndarray, "n F"]


@dataclass(frozen=True)
class Probe:
    """A linear map from vectors to attributes.

    Attributes:
      center: mean vector, [F].
      weights: [F, A].
      mean: mean target, [A].
    """

    center: np.ndarray
    weights: np.ndarray
    mean: np.ndarray

    def predict(self, vectors: Vectors) -> list[Attributes]:
        """The attributes that are nearest to the map's output."""
        return _attributes((np.asarray(vectors, np.float64) - self.center) @ self.weights + self.mean)


def fit(vectors: Vectors, watches: Sequence[Attributes]) -> Probe:
    """Fit a probe.

    Args:
      vectors: of n images, n at least 2.
      watches: attributes of the images.
    """
    wanted = np.stack([_columns(watch) for watch in watches])
    vectors = np.asarray(vectors, np.float64)
    center, mean = vectors.mean(axis=0), wanted.mean(axis=0)
    centered, residual = vectors - center, wanted - mean
    count = len(vectors)
    # The dual problem: images are fewer than a vector is wide, or few enough for a matrix of their number squared.
    values, basis = np.linalg.eigh(centered @ centered.T)
    values = np.maximum(values, 0.0)
    scale = values.sum() / count
    # Without variance the mean is the prediction.
    if not scale > 0:
        return Probe(center, np.zeros((vectors.shape[1], wanted.shape[1])), mean)
    rotated = basis.T @ residual
    kept = values[:, None] / (values[:, None] + PENALTIES * scale)
    # Leverage of each image, [n, penalties]; 1 / n is the mean's.
    own = np.minimum(np.square(basis) @ kept + 1 / count, 1 - 1e-9)
    errors = np.stack(
        [
            np.mean(np.square((residual - basis @ (share[:, None] * rotated)) / (1 - leverage)[:, None]), axis=0)
            for share, leverage in zip(kept.T, own.T, strict=True)
        ]
    )
    duals = np.zeros_like(residual)
    for part in _PARTS.values():
        penalty = PENALTIES[int(np.argmin(errors[:, part].sum(axis=1)))] * scale
        duals[:, part] = basis @ (rotated[:, part] / (values + penalty)[:, None])
    return Probe(center, centered.T @ duals, mean)


def constant(watches: Sequence[Attributes]) -> Attributes:
    """The prediction of a probe that is fitted on images with these attributes, without a vector."""
    return _attributes(np.mean([_columns(watch) for watch in watches], axis=0)[None])[0]


def directions(embeddings: Float[np.ndarray, "n N F"]) -> Float[np.ndarray, "n N F"]:
    """Each token's vector at length √F: of a predicted one only the direction has a meaning."""
    embeddings = np.asarray(embeddings, np.float32)
    norms = np.sqrt(np.mean(np.square(embeddings), axis=-1, keepdims=True))
    return embeddings / np.maximum(norms, 1e-12)


def _columns(watch: Attributes) -> np.ndarray:
    turns = (watch.hour % 12 + watch.minute / 60) / 12, watch.minute / 60, watch.second / 60
    hands = [value for turn in turns for value in (np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn))]
    return np.asarray(
        [
            *(float(watch.weather == name) for name in WEATHERS),
            *(float(watch.weather_position == name) for name in POSITIONS),
            *(float(watch.battery_position == name) for name in POSITIONS),
            watch.battery / 100,
            *hands,
            *(channel / 255 for channel in watch.color),
        ]
    )


def _attributes(columns: np.ndarray) -> list[Attributes]:
    """The attributes that columns, [n, A], are nearest to."""

    def choose(part: str, names: Sequence[str]) -> list[str]:
        return [names[number] for number in columns[:, _PARTS[part]].argmax(axis=1)]

    def turn(hand: str) -> np.ndarray:
        sine, cosine = columns[:, _PARTS[hand]].T
        return np.arctan2(sine, cosine) / (2 * np.pi) % 1.0

    minutes = np.round(turn("minute") * 60).astype(int) % 60
    hours = np.round(turn("hour") * 12 - minutes / 60).astype(int) % 12
    seconds = np.round(turn("second") * 60).astype(int) % 60
    charges = np.clip(np.round(columns[:, _PARTS["battery"]][:, 0] * 100), 0, 100).astype(int)
    colors = np.clip(np.round(columns[:, _PARTS["color"]] * 255), 0, 255).astype(int)
    rows = zip(
        hours.tolist(),
        minutes.tolist(),
        seconds.tolist(),
        choose("weather", WEATHERS),
        charges.tolist(),
        choose("weather_pos", POSITIONS),
        choose("battery_pos", POSITIONS),
        map(tuple, colors.tolist()),
        strict=True,
    )
    return [Attributes(*row) for row in rows]
