"""How a score grows with data: a power law for each series of arms, and where two of them cross.

The law is error = a · size^−b, with error = 1 − score: a straight line in logarithms, fitted by least squares to the
means over seeds. Intervals are Student's, with the jackknife's standard errors over seeds (Efron and Tibshirani, 1993,
chapter 11), the same seed left out for every arm and size; of a plain mean that is what ``statistics`` gives. That of
a crossing, which is a ratio, is Fieller's (J. R. Statist. Soc. B 16, 1954): it has no end where the slopes may as well
be equal. They say nothing of whether a power law is the right curve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unihetero_jax.study.declaration import Scaling
from unihetero_jax.study.statistics import LEAST_ERROR, student

_Errors = Mapping[float, Mapping[int, float]]
"""1 − score, by size and seed."""


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

    ``low`` is 0 where it may be any small size; ``high`` is None where the laws may as well never cross.
    """

    first: str
    later: str
    size: float
    low: float
    high: float | None


def fits(scaling: Scaling, scores: Mapping[str, Mapping[int, float]]) -> tuple[list[Fit], list[Crossing]]:
    """Power laws of the series that have three sizes and two seeds, and the crossings of each two of them.

    Args:
      scaling: which arms are of which size.
      scores: by arm and seed.
    """
    series: dict[str, _Errors] = {}
    found: list[Fit] = []
    for name, arms in scaling.series.items():
        errors = {size: {seed: 1 - score for seed, score in scores.get(arm, {}).items()} for arm, size in arms.items()}
        measured = {size: by_seed for size, by_seed in errors.items() if by_seed}
        seeds = _common(measured)
        if len(measured) < 3 or len(seeds) < 2:
            continue
        series[name] = measured
        laws = _laws(measured, seeds)
        half = student(len(seeds)) * np.sqrt(np.diag(_covariance(laws)))
        (slope, start), (low, low_start), (high, high_start) = laws[0], laws[0] - half, laws[0] + half
        found.append(
            Fit(
                name,
                [(size, float(np.mean([measured[size][seed] for seed in seeds]))) for size in sorted(measured)],
                (float(slope), float(low), float(high)),
                (math.exp(start), math.exp(low_start), math.exp(high_start)),
                len(seeds),
            )
        )
    crossings = []
    for one, other in itertools.permutations(series, 2):
        # What two series share in a seed must not blur where they cross.
        seeds = sorted(set(_common(series[one])) & set(_common(series[other])))
        if len(seeds) < 2:
            continue
        differences = _laws(series[other], seeds) - _laws(series[one], seeds)
        slope, start = differences[0].tolist()
        if slope > 0:  # the other one falls faster, and is lower beyond the crossing
            least, most = _fieller(start, slope, student(len(seeds)) ** 2 * _covariance(differences))
            crossings.append(
                Crossing(one, other, _size(start / slope), _size(least), None if most == math.inf else _size(most))
            )
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


def _common(errors: _Errors) -> list[int]:
    """The seeds that all sizes have."""
    return sorted(set.intersection(*map(set, errors.values()))) if errors else []


def _laws(errors: _Errors, seeds: Sequence[int]) -> np.ndarray:
    """(b, log a) of the law of all seeds' means, and behind it of the laws without each of them [1 + seeds, 2]."""
    sizes = sorted(errors)
    table = np.asarray([[errors[size][seed] for seed in seeds] for size in sizes])
    means = [table.mean(axis=1), *(np.delete(table, seed, axis=1).mean(axis=1) for seed in range(len(seeds)))]
    slopes, starts = np.polyfit(np.log(sizes), np.log(np.maximum(np.stack(means, axis=1), LEAST_ERROR)), 1)
    return np.stack([-slopes, starts], axis=1)


def _covariance(laws: np.ndarray) -> np.ndarray:
    """The jackknife's, of (b, log a) [2, 2]."""
    without = laws[1:]
    around = without - without.mean(axis=0)
    covariance: np.ndarray = (len(without) - 1) / len(without) * around.T @ around
    return covariance


def _fieller(over: float, under: float, spread: np.ndarray) -> tuple[float, float]:
    """The interval of a ratio whose lower part is above 0; infinite ends where that may as well be 0.

    Args:
      over: above the line.
      under: below it.
      spread: covariance of (under, over) times the square of Student's quantile [2, 2].
    """
    # All x with (over − x · under)² within its own spread: a · x² − 2 · b · x + c ≤ 0.
    a, b, c = under**2 - spread[0, 0], over * under - spread[0, 1], over**2 - spread[1, 1]
    root = math.sqrt(max(b**2 - a * c, 0.0))
    if a > 0:
        return (b - root) / a, (b + root) / a
    if a < 0 < root and over / under >= (b - root) / a:
        return (b - root) / a, math.inf
    return -math.inf, math.inf


def _size(logarithm: float) -> float:
    return math.exp(min(logarithm, 700.0))
