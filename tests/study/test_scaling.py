"""Power laws over sizes of data: the fit, its uncertainty, and where two of them cross."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unihetero_jax.study import scaling
from unihetero_jax.study.declaration import Claim, Scaling
from unihetero_jax.study.scaling import fits, slope_weights
from unihetero_jax.study.statistics import judge

SIZES = (100.0, 200.0, 400.0, 800.0, 1600.0)


def laws(noise=0.0, seeds=5, **series):
    """Scores of arms whose errors follow a · size^−b, and what says which arm has which size."""
    chance = np.random.default_rng(0)
    scores, sizes = {}, {}
    for name, (scale, slope) in series.items():
        sizes[name] = {f"{name}-{size:.0f}": size for size in SIZES}
        for arm, size in sizes[name].items():
            errors = scale * size**-slope * np.exp(noise * chance.normal(size=seeds))
            scores[arm] = dict(enumerate((1 - errors).tolist()))
    return Scaling("score", "samples", sizes), scores


def test_a_power_law_is_found():
    found, crossings = fits(*laws(base=(2.0, 0.2), semantic=(5.0, 0.4)))
    assert [(fit.slope[0], fit.scale[0]) for fit in found] == [
        (pytest.approx(0.2), pytest.approx(2.0)),
        (pytest.approx(0.4), pytest.approx(5.0)),
    ]
    (crossing,) = crossings
    assert (crossing.first, crossing.later) == ("base", "semantic")
    # 2 · s^−0.2 = 5 · s^−0.4 where s^0.2 = 2.5.
    assert crossing.size == pytest.approx(2.5**5)
    assert found[0].error(300.0) == pytest.approx(2.0 * 300**-0.2)


def test_more_noise_is_a_wider_interval_that_holds_the_truth():
    widths = []
    for noise in (0.02, 0.1):
        (fit,), _ = fits(*laws(noise, base=(2.0, 0.2)))
        assert fit.slope[1] < 0.2 < fit.slope[2]
        widths.append(fit.slope[2] - fit.slope[1])
    assert widths[1] > 3 * widths[0]


def test_an_interval_of_few_seeds_holds_the_truth_about_as_often_as_it_says():
    chance = np.random.default_rng(0)
    # Of a thousand studies' five seeds, in place of laws; quantiles of 2.5% at either end hold 0 in 84% of cases.
    held = []
    for values in chance.normal(size=(1000, 5)):
        low, high = scaling._interval(values[chance.integers(0, 5, (2000, 5))].mean(axis=1), 5)
        held.append(low <= 0 <= high)
    assert 0.90 < np.mean(held) < 0.96


def test_laws_cross_by_the_seeds_that_both_have():
    series, scores = laws(base=(2.0, 0.2), semantic=(5.0, 0.4))
    for arm, found in scores.items():
        name = arm.partition("-")[0]
        # Some seeds are worse, for both alike, and each series lacks another one.
        scores[arm] = {seed: 1 - (1 - score) * 1.3**seed for seed, score in found.items()}
        del scores[arm][0 if name == "base" else 4]
    found, (crossing,) = fits(series, scores)
    assert [fit.seeds for fit in found] == [4, 4]
    assert (crossing.size, crossing.low, crossing.high) == (pytest.approx(2.5**5),) * 3


def test_where_it_cannot_be_told_the_interval_of_a_crossing_has_no_end():
    _, (crossing,) = fits(*laws(0.05, seeds=3, base=(1.0, 0.20), semantic=(1.1, 0.21)))
    assert crossing.high is None


def test_too_few_sizes_or_seeds_give_no_law():
    series, scores = laws(base=(2.0, 0.2))
    assert fits(series, {arm: found for arm, found in scores.items() if arm in ("base-100", "base-200")}) == ([], [])
    assert fits(series, {arm: {0: found[0]} for arm, found in scores.items()}) == ([], [])


def test_the_slope_is_a_contrast_of_log_errors():
    series, scores = laws(0.02, base=(2.0, 0.2))
    (fit,), _ = fits(series, scores)
    claim = Claim("s", "errors rise with data", "score", slope_weights(series.series["base"]), log_error=True)
    found = judge(claim, scores)
    assert found.effect.mean == pytest.approx(-fit.slope[0], rel=1e-2)
    assert found.verdict == "does not"
    assert math.isclose(sum(claim.contrast.values()), 0.0, abs_tol=1e-12)
