"""Verdicts: from scores of seeds to what is said about a claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unihetero_jax.study.definition import Claim
from unihetero_jax.study.statistics import estimate, judge, seeds_to_decide

CLAIM = Claim("c", "a is more than b", "score", {"a": 1.0, "b": -1.0})


def scores(differences):
    """Arms whose own spread over seeds is far larger than what sets them apart."""
    level = {seed: 10.0 * seed for seed in range(len(differences))}
    return {"b": level, "a": {seed: level[seed] + d for seed, d in enumerate(differences)}}


def test_the_interval_is_students():
    # 1, 2, 3, 4, 5: mean 3, s = 1.5811, t(0.975, 4) = 2.7764, so ± 1.9632.
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.count) == (3.0, 5)
    assert (found.low, found.high) == (pytest.approx(1.0368, abs=1e-4), pytest.approx(4.9632, abs=1e-4))


def test_an_interval_holds_the_mean_as_often_as_it_says():
    chance = np.random.default_rng(0)
    held = [(found := estimate(chance.normal(size=5).tolist())).low <= 0 <= found.high for _ in range(2000)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [((0.1, 0.12, 0.09), "holds"), ((-0.1, -0.12, -0.09), "does not"), ((0.1, -0.1, 0.05), "undecided")],
)
def test_a_verdict_is_where_the_whole_interval_is(differences, verdict):
    assert judge(CLAIM, scores(differences)).verdict == verdict


def test_seeds_are_paired():
    found = judge(CLAIM, scores((0.1, 0.12, 0.09)))
    assert found.effect.mean == pytest.approx(0.31 / 3)
    assert found.effect.high - found.effect.low < 0.1


def test_only_seeds_of_all_arms_count():
    some = scores((0.1, 0.12, 0.09))
    del some["b"][1]
    assert set(judge(CLAIM, some).by_seed) == {0, 2}
    nothing = judge(CLAIM, {"a": {0: 1.0}})
    assert nothing.verdict == "undecided"
    assert nothing.effect.count == 0


def test_one_seed_decides_nothing():
    found = judge(CLAIM, scores((0.5,)))
    assert found.verdict == "undecided"
    assert math.isinf(found.effect.low)


@pytest.mark.parametrize("level", [0.3, 0.5, 0.7])
def test_what_floating_point_leaves_is_no_effect(level):
    weights = {"a": 0.1, "b": 0.2, "c": -0.3}
    same = {arm: dict.fromkeys(range(5), level) for arm in weights}
    for logarithm in (False, True):
        found = judge(Claim("c", "equal scores differ", "score", weights, logarithm), same)
        assert (found.verdict, found.effect.mean) == ("undecided", 0.0)


def test_as_many_seeds_as_are_said_to_be_needed_decide():
    values = [0.3, -0.1, 0.2]
    needed = seeds_to_decide(values)
    mean, spread = np.mean(values), np.std(values, ddof=1)
    for count, decided in ((needed, True), (needed - 1, False)):
        shape = np.random.default_rng(0).normal(size=count)
        made = mean + spread * (shape - shape.mean()) / shape.std(ddof=1)
        assert (estimate(made.tolist()).low > 0) == decided
    assert seeds_to_decide([0.1, -0.1]) is None
