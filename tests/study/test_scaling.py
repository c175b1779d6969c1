"""Power laws over sizes of data: the fit, its uncertainty, and where two of them cross."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unihetero_jax.study import power_law
from unihetero_jax.study.definition import Claim, Scaling
from unihetero_jax.study.power_law import fits, slope_weights
from unihetero_jax.study.statistics import estimate, judge, student

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


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    # Of a slope, a scale, and where the two laws cross.
    chance = np.random.default_rng(0)
    held = []
    for _ in range(400):
        errors = {}
        for name, (scale, slope) in {"base": (2.0, 0.2), "semantic": (8.0, 0.35)}.items():
            for size in SIZES:
                errors[f"{name}-{size:.0f}"] = scale * size**-slope * np.exp(0.02 * chance.normal(size=seeds))
        scores = {arm: dict(enumerate((1 - found).tolist())) for arm, found in errors.items()}
        (fit, _), crossings = fits(laws(base=(1, 1), semantic=(1, 1))[0], scores)
        truth = (8.0 / 2.0) ** (1 / 0.15)
        crossed = next((found for found in crossings if found.first == "base"), None)
        held.append(
            (
                fit.slope[1] <= 0.2 <= fit.slope[2],
                fit.scale[1] <= 2.0 <= fit.scale[2],
                crossed is None or crossed.low <= truth <= (crossed.high or math.inf),
            )
        )
    assert np.mean(held, axis=0) == pytest.approx([0.95] * 3, abs=0.03)


def test_of_a_plain_mean_the_interval_is_students():
    values = [0.1, 0.2, 0.4]
    laws_of = np.asarray([[np.mean(values), 0.0], *([np.mean(np.delete(values, at)), 0.0] for at in range(3))])
    half = student(3) * math.sqrt(power_law._covariance(laws_of)[0, 0])
    assert estimate(values).high - np.mean(values) == pytest.approx(half)


def test_a_ratio_has_no_end_where_its_lower_part_may_be_0():
    exact = np.zeros((2, 2))
    assert power_law._fieller(6.0, 2.0, exact) == (3.0, 3.0)
    # (6 ± 1) / 2, the lower part known.
    assert power_law._fieller(6.0, 2.0, np.diag([0.0, 1.0])) == (2.5, 3.5)
    low, high = power_law._fieller(6.0, 2.0, np.diag([9.0, 1.0]))
    assert (0 < low < 3.0, high) == (True, math.inf)
    assert power_law._fieller(0.1, 2.0, np.diag([9.0, 1.0])) == (-math.inf, math.inf)


def test_laws_cross_by_the_seeds_that_both_have():
    series, scores = laws(base=(2.0, 0.2), semantic=(5.0, 0.4))
    for arm, found in scores.items():
        name = arm.partition("-")[0]
        # Some seeds are worse, for both alike, and each series lacks another one.
        scores[arm] = {seed: 1 - (1 - score) * 1.3**seed for seed, score in found.items()}
        del scores[arm][0 if name == "base" else 4]
    found, (crossing,) = fits(series, scores)
    assert [fit.seeds for fit in found] == [4, 4]
    assert (crossing.size, crossing.low, crossing.high) == (pytest.approx(2.5**5, rel=1e-4),) * 3


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
