"""What the runs of some seeds say about a claim: an interval, a verdict, and how many seeds would decide.

Seeds are the unit: a contrast of arms is taken within each seed, and its mean over seeds has a Student interval
(Student, Biometrika 1908). The interval of one claim knows nothing of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from unihetero_jax.study.declaration import Claim

CONFIDENCE = 0.95
# A score of 1 has no logarithm of its error.
LEAST_ERROR = 1e-4
_ROUNDING = 1e-12
# Beyond so many it is no longer worth telling how many.
_MOST_SEEDS = 10_000

Verdict = Literal["holds", "does not", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; without two seeds the interval is everything."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Finding:
    """What is known of a claim.

    ``effect``: the contrast, in units of the metric, seed by seed and their mean. ``needed``: seeds that would decide,
    if mean and spread stayed as they are; None where the claim is decided, or nothing can be said.
    """

    claim: Claim
    verdict: Verdict
    effect: Estimate
    by_seed: Mapping[int, float]
    needed: int | None


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent values, mean ± t · s / √n.

    Args:
      values: at least one.
      confidence: of the interval.
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Estimate(mean, -math.inf, math.inf, count)
    half = student(count, confidence) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def student(count: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors the ends of an interval lie from the mean of so many values."""
    return float(stats.t.ppf((1 + confidence) / 2, count - 1))


def judge(claim: Claim, scores: Mapping[str, Mapping[int, float]]) -> Finding:
    """A claim against what was measured.

    Args:
      claim: what is claimed.
      scores: of its metric, by arm and seed; only seeds that all arms of the claim have are used.

    Returns:
      *holds* when the whole interval is above 0, *does not* when it is below 0, else *undecided*.
    """
    seeds = sorted(set.intersection(*(set(scores.get(arm, {})) for arm in claim.contrast)))
    value = _log_error if claim.log_error else float
    by_seed = {
        seed: _total([weight * value(scores[arm][seed]) for arm, weight in claim.contrast.items()]) for seed in seeds
    }
    if not by_seed:
        return Finding(claim, "undecided", Estimate(math.nan, -math.inf, math.inf, 0), {}, None)
    effect = estimate(list(by_seed.values()))
    if effect.low > 0:
        return Finding(claim, "holds", effect, by_seed, None)
    if effect.high < 0:
        return Finding(claim, "does not", effect, by_seed, None)
    return Finding(claim, "undecided", effect, by_seed, seeds_to_decide(list(by_seed.values())))


def _total(terms: Sequence[float]) -> float:
    """Their sum; 0 where it is no more than what floating point leaves of terms that cancel."""
    total, size = math.fsum(terms), math.fsum(map(abs, terms))
    return total if abs(total) > _ROUNDING * size else 0.0


def _log_error(score: float) -> float:
    return math.log(max(1 - score, LEAST_ERROR))


def seeds_to_decide(values: Sequence[float]) -> int | None:
    """The least number of seeds whose interval would leave out 0, with this mean and spread; None if there is none."""
    if len(values) < 2 or not np.mean(values):
        return None
    mean, spread = abs(float(np.mean(values))), float(np.std(values, ddof=1))
    for count in range(2, _MOST_SEEDS + 1):
        if student(count) * spread / math.sqrt(count) < mean:
            return count
    return None
