"""How a score grows with data: a power law for each series of arms, and where two of them cross.

The law is error = a · size^−b, with error = 1 − score: a straight line in logarithms, fitted by least squares to the
means over seeds. Its uncertainty comes of drawing seeds with replacement, the same ones for every arm and size (paired
bootstrap; Efron and Tibshirani, 1993, chapter 6), and says nothing of whether a power law is the right curve.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unihetero_jax.study.declaration import Scaling
from unihetero_jax.study.statistics import CONFIDENCE, LEAST_ERROR

_DRAWS = 2_000


@dataclass(frozen=True)
class Fit:
    """A power law of one series: mean, low and high end of ``slope`` (b) and of ``scale`` (a).

    ``points``: (size, mean error over seeds); ``seeds``: that all of its arms have.
    """

    series: str
    points: Sequence[tuple[float, float]]
    slope: tuple[float, float, float]
    scale: tuple[float, float, float]
    seeds: int

    def error(self, size: float) -> float:
        """That the law has at a size."""
        return self.scale[0] * size ** -self.slope[0]


@dataclass(frozen=True)
class Crossing:
    """The size from which on ``later`` has less error than ``first``, by their laws: estimate and interval.

    None: the laws do not cross that way; an end of the interval is None where they do not in more than the share of
    draws that it leaves out.
    """

    first: str
    later: str
    size: float | None
    low: float | None
    high: float | None


def fits(scaling: Scaling, scores: Mapping[str, Mapping[int, float]]) -> tuple[list[Fit], list[Crossing]]:
    """Power laws of the series that have three sizes and two seeds, and the crossings of each two of them.

    Args:
      scaling: which arms are of which size.
      scores: by arm and seed.
    """
    drawn: dict[str, np.ndarray] = {}
    found: list[Fit] = []
    for name, arms in scaling.series.items():
        here = {size: scores[arm] for arm, size in arms.items() if scores.get(arm)}
        seeds = sorted(set.intersection(*map(set, here.values()))) if here else []
        if len(here) < 3 or len(seeds) < 2:
            continue
        sizes = np.asarray(sorted(here), np.float64)
        errors = np.asarray([[1 - here[size][seed] for seed in seeds] for size in sizes])  # [sizes, seeds]
        # The same seeds for every series with as many, so that what they share does not blur a crossing.
        picks = np.random.default_rng(0).integers(0, len(seeds), (_DRAWS, len(seeds)))
        laws = np.asarray([_law(sizes, errors[:, pick].mean(axis=1)) for pick in picks])
        drawn[name] = laws
        slope, scale = _law(sizes, errors.mean(axis=1))
        found.append(
            Fit(
                name,
                list(zip(sizes.tolist(), errors.mean(axis=1).tolist(), strict=True)),
                (slope, *_interval(laws[:, 0])),
                (scale, *_interval(laws[:, 1])),
                len(seeds),
            )
        )
    crossings = []
    for one, other in itertools.permutations(found, 2):
        if one.slope[0] < other.slope[0]:  # the other one falls faster, and is lower beyond the crossing
            sizes_drawn = _crossings(drawn[one.series], drawn[other.series])
            size = _crossings(np.asarray([_point(one)]), np.asarray([_point(other)]))[0]
            low, high = (float(end) for end in np.quantile(sizes_drawn, _tails(), method="nearest"))
            crossings.append(Crossing(one.series, other.series, _size(float(size)), _size(low), _size(high)))
    return found, crossings


def slope_weights(arms: Mapping[str, float]) -> dict[str, float]:
    """Weights of arms whose sum over log errors is the slope of the least-squares line; they add up to 0.

    Args:
      arms: name → size.
    """
    logs = {arm: float(np.log(size)) for arm, size in arms.items()}
    mean = sum(logs.values()) / len(logs)
    spread = sum((value - mean) ** 2 for value in logs.values())
    return {arm: (value - mean) / spread for arm, value in logs.items()}


def _law(sizes: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """(b, a) of error = a · size^−b."""
    slope, start = np.polyfit(np.log(sizes), np.log(np.maximum(errors, LEAST_ERROR)), 1)
    return -float(slope), float(np.exp(start))


def _point(fit: Fit) -> tuple[float, float]:
    return fit.slope[0], fit.scale[0]


def _crossings(first: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Sizes at which laws [n, (b, a)] cross, for the later one to be lower beyond; infinite where it never is."""
    faster = later[:, 0] - first[:, 0]
    with np.errstate(divide="ignore", over="ignore"):
        sizes = np.exp((np.log(later[:, 1]) - np.log(first[:, 1])) / np.where(faster > 0, faster, np.nan))
    return np.where(faster > 0, sizes, np.inf)


def _size(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, _tails())
    return float(low), float(high)
