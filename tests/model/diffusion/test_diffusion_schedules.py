"""Schedules: the published formulas in plain loops, and what a subset of the steps keeps."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion.schedules import CosineSchedule, FlowSchedule, space_timesteps


def cosine(time):
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def test_the_cosine_schedule_is_the_formula():
    schedule = CosineSchedule(100)
    np.testing.assert_allclose(schedule.alpha_bar[:99], [cosine((t + 1) / 100) / cosine(0) for t in range(99)])
    assert schedule.beta[-1] == pytest.approx(0.999), "the last is cut, or nothing of the data were left"
    assert schedule.alpha_bar.dtype == np.float64


@pytest.mark.parametrize(
    ("timesteps", "sections", "kept"),
    [
        (10, 10, tuple(range(10))),
        (10, 4, (0, 3, 6, 9)),
        (1000, 2, (0, 999)),
        (9, 5, (0, 2, 4, 6, 8)),
        (11, (3, 2), (0, 2, 5, 6, 10)),  # the first section is the longer one
        (4, (1, 1), (0, 2)),
    ],
)
def test_steps_are_kept_evenly(timesteps, sections, kept):
    assert space_timesteps(timesteps, sections) == kept


@pytest.mark.parametrize("sections", [0, 11, (6, 1), (1, 0)])
def test_more_steps_than_there_are_is_an_error(sections):
    with pytest.raises(UsageError, match="diffusion steps: expected 1 to"):
        space_timesteps(10, sections)


def test_a_subset_keeps_the_noise_of_its_steps():
    whole, part = CosineSchedule(50), CosineSchedule(50).respaced(7)
    assert len(part.network_times) == 7
    np.testing.assert_allclose(part.alpha_bar, whole.alpha_bar[part.network_times])
    np.testing.assert_allclose(np.cumprod(1 - part.beta), part.alpha_bar)
    assert hash(part) == hash(CosineSchedule(50).respaced(7))
    assert part == CosineSchedule(50).respaced(7), "a static attribute of a module has to compare equal"


def test_the_posterior_is_that_of_two_gaussians():
    """Bayes' rule for x_{t−1} ~ N(√ᾱ' x₀, 1 − ᾱ') and x_t ~ N(√(1 − β) x_{t−1}, β)."""
    schedule = CosineSchedule(20)
    start, noised = np.float64(0.7), np.float64(-1.3)
    for index in range(1, 20):
        beta, before = schedule.beta[index], schedule.alpha_bar[index - 1]
        precision = (1 - beta) / beta + 1 / (1 - before)
        mean = (math.sqrt(1 - beta) / beta * noised + math.sqrt(before) / (1 - before) * start) / precision
        found = schedule.posterior_mean(jnp.array([start]), jnp.array([noised]), jnp.int32(index))
        np.testing.assert_allclose(found, [mean], rtol=1e-4)
        np.testing.assert_allclose(schedule.posterior_log_variance[index], -math.log(precision), rtol=1e-9)
        least, most = (schedule.log_variance(jnp.array([v]), jnp.int32(index))[0] for v in (-1.0, 1.0))
        np.testing.assert_allclose([least, most], [-math.log(precision), math.log(beta)], rtol=1e-5, atol=1e-6)
    assert schedule.posterior_log_variance[0] == schedule.posterior_log_variance[1]


def test_the_data_comes_back_from_the_noise():
    schedule = CosineSchedule(20)
    start, noise = np.random.default_rng(0).standard_normal((2, 15, 4)).astype(np.float32)
    index = jnp.arange(15)
    back = schedule.start(schedule.noised(start, noise, index), noise, index)
    np.testing.assert_allclose(back, start, atol=1e-4)


def test_a_flow_is_straight_from_data_to_noise():
    start, noise = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    noised = FlowSchedule().noised(start, noise, jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(noised, [start[0], 0.75 * start[1] + 0.25 * noise[1], noise[2]], rtol=1e-6)
    np.testing.assert_allclose(FlowSchedule(1000).network_time(jnp.array([0.0, 0.25])), [0, 250])
