"""Power laws of scores over amounts of data, and where two of them cross.

The law is error = a · size^−b, with error = 1 − score: a straight line in logarithms, fitted by least squares to the
means over seeds. Intervals are Student's, with the jackknife's standard errors over seeds (Efron and Tibshirani, 1993,
chapter 11), the same seed left out for every arm and size; for a plain mean they equal those of ``statistics``. A
crossing is a ratio; its interval is Fieller's (J. R. Statist. Soc. B 16, 1954), which is unbounded where the slopes may
be equal. The intervals do not test whether a power law is the right curve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unihetero_jax.study.definition import Scaling
from unihetero_jax.study.statistics import LEAST_ERROR, student

_Errors = Mapping[float, Mapping[int, float]]
"""1 − score, by size and seed."""


@dataclass(frozen=True)
class Fit:
    """The power law of a series.

    Attributes:
      series: name of the series.
      points: (size, mean error over seeds) of each size.
      slope: estimate, low and high end of b.
      scale: estimate, low and high end of a.
      seeds: number of seeds that all arms of the series have.
    """

    series: str
    points: Sequence[tuple[float, float]]
    slope: tuple[float, float, float]
    scale: tuple[float, float, float]
    seeds: int

    def error(self, size: float) -> float:
        """Return the error that the law predicts at a size."""
        return self.scale[0] * size ** -self.slope[0]


@dataclass(frozen=True)
class Crossing:
    """The size beyond which ``later`` has less error than ``first``, by their laws.

    Attributes:
      first: name of the series that is better below the size.
      later: name of the series that is better above it.
      size: estimate of the size.
      low: lower end of its interval; 0 where it has none.
      high: upper end of its interval; None where the laws may never cross.
    """

    first: str
    later: str
    size: float
    low: float
    high: float | None


def fits(scaling: Scaling, scores: Mapping[str, Mapping[int, float]]) -> tuple[list[Fit], list[Crossing]]:
    """Fit power laws to the series that have three sizes and two seeds, and find the crossings of each two of them.

    Args:
      scaling: the series of arms, with their sizes.
      scores: scores by arm and seed.
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
        # Differences are taken within each seed, so that variation shared by the two series cancels.
        seeds = sorted(set(_common(series[one])) & set(_common(series[other])))
        if len(seeds) < 2:
            continue
        differences = _laws(series[other], seeds) - _laws(series[one], seeds)
        slope, start = differences[0].tolist()
        if slope > 0:  # the other law falls faster, and is lower beyond the crossing
            least, most = _fieller(start, slope, student(len(seeds)) ** 2 * _covariance(differences))
            crossings.append(
                Crossing(one, other, _size(start / slope), _size(least), None if most == math.inf else _size(most))
            )
    return found, crossings


def slope_weights(arms: Mapping[str, float]) -> dict[str, float]:
    """Return weights whose sum over the arms' log errors is the slope of the least-squares line; they sum to 0.

    Args:
      arms: size of each arm, by name.
    """
    logs = {arm: float(np.log(size)) for arm, size in arms.items()}
    mean = sum(logs.values()) / len(logs)
    spread = sum((value - mean) ** 2 for value in logs.values())
    return {arm: (value - mean) / spread for arm, value in logs.items()}


def _common(errors: _Errors) -> list[int]:
    """Return the seeds that all sizes have."""
    return sorted(set.intersection(*map(set, errors.values()))) if errors else []


def _laws(errors: _Errors, seeds: Sequence[int]) -> np.ndarray:
    """Return (b, log a) of the law of all seeds, then of the laws with one seed left out, [1 + seeds, 2]."""
    sizes = sorted(errors)
    table = np.asarray([[errors[size][seed] for seed in seeds] for size in sizes])
    means = [table.mean(axis=1), *(np.delete(table, seed, axis=1).mean(axis=1) for seed in range(len(seeds)))]
    slopes, starts = np.polyfit(np.log(sizes), np.log(np.maximum(np.stack(means, axis=1), LEAST_ERROR)), 1)
    return np.stack([-slopes, starts], axis=1)


def _covariance(laws: np.ndarray) -> np.ndarray:
    """Return the jackknife's covariance of (b, log a), [2, 2]."""
    without = laws[1:]
    around = without - without.mean(axis=0)
    covariance: np.ndarray = (len(without) - 1) / len(without) * around.T @ around
    return covariance


def _fieller(over: float, under: float, spread: np.ndarray) -> tuple[float, float]:
    """Return Fieller's interval of a ratio with a positive denominator; infinite where that may be 0.

    Args:
      over: numerator.
      under: denominator.
      spread: covariance of (denominator, numerator) times the square of Student's quantile, [2, 2].
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
