"""Claims against measured scores: an interval, a verdict, and how many seeds would decide.

Seeds are the unit: a contrast of arms is taken within each seed, and its mean over seeds has a Student interval
(Student, Biometrika 1908). Intervals are not corrected for the number of claims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from unihetero_jax.study.definition import Claim

CONFIDENCE = 0.95
# A score of 1 has no logarithm of its error.
LEAST_ERROR = 1e-4
_ROUNDING = 1e-12
# Larger numbers of seeds are not reported.
_MAX_SEEDS = 10_000

Verdict = Literal["holds", "does not", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    Attributes:
      mean: the mean.
      low: lower end of the interval; minus infinity for fewer than two seeds.
      high: upper end of the interval; infinity for fewer than two seeds.
      count: number of seeds.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Finding:
    """The result of testing a claim.

    Attributes:
      claim: the claim.
      verdict: *holds* when the whole interval is above 0, *does not* when it is below 0, else *undecided*.
      effect: mean of the contrast over seeds, in units of the metric.
      by_seed: the contrast of each seed.
      needed: number of seeds that would decide, if mean and spread stayed as they are; None for a decided claim, or
        where it cannot be estimated.
    """

    claim: Claim
    verdict: Verdict
    effect: Estimate
    by_seed: Mapping[int, float]
    needed: int | None


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the mean of independent values, with the interval mean ± t · s / √n.

    Args:
      values: one value per seed, at least one.
      confidence: confidence level of the interval.
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Estimate(mean, -math.inf, math.inf, count)
    half = student(count, confidence) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def student(count: int, confidence: float = CONFIDENCE) -> float:
    """Return Student's quantile: half the interval of a mean of ``count`` values, in standard errors."""
    return float(stats.t.ppf((1 + confidence) / 2, count - 1))


def judge(claim: Claim, scores: Mapping[str, Mapping[int, float]]) -> Finding:
    """Test a claim.

    Args:
      claim: the claim.
      scores: scores of its metric, by arm and seed; only seeds that all arms of the claim have are used.
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
    """Return the sum of terms; 0 where terms that cancel leave no more than a rounding error."""
    total, size = math.fsum(terms), math.fsum(map(abs, terms))
    return total if abs(total) > _ROUNDING * size else 0.0


def _log_error(score: float) -> float:
    return math.log(max(1 - score, LEAST_ERROR))


def seeds_to_decide(values: Sequence[float]) -> int | None:
    """Return the least number of seeds that would exclude 0, with this mean and spread; None if there is none."""
    if len(values) < 2 or not np.mean(values):
        return None
    mean, spread = abs(float(np.mean(values))), float(np.std(values, ddof=1))
    for count in range(2, _MAX_SEEDS + 1):
        if student(count) * spread / math.sqrt(count) < mean:
            return count
    return None
