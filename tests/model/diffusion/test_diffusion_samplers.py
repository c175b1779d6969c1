"""Samplers: networks that are right by construction bring noise to the data; keys, guidance and temperature."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_toys import CONDITION, Oracle, normal, toy_head
from flax import nnx

from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion.samplers import Settings, guidance_scale, sample, trajectory
from unihetero_jax.model.diffusion.schedules import CosineSchedule, FlowSchedule

DDPM, FLOW = CosineSchedule(200), FlowSchedule()
MEAN = jnp.broadcast_to(jnp.array([0.5, -0.3]), (2, 500, 2))


@functools.cache
def sampler(schedule, steps, settings, spread=0.2):
    network = Oracle(schedule, spread, variance=-0.5)
    return jax.jit(lambda condition, key: sample(network, schedule, condition, key, steps, settings))


@functools.cache
def path(schedule, settings, spread=0.2):
    network = Oracle(schedule, spread)
    return jax.jit(lambda condition, noise: trajectory(network, schedule, condition, noise, settings))


def test_ancestral_samples_have_the_mean_and_the_spread_of_the_data():
    found = np.asarray(sampler(DDPM, 50, Settings())(MEAN, jax.random.key(0)))
    np.testing.assert_allclose(found.mean((0, 1)), [0.5, -0.3], atol=0.02)
    np.testing.assert_allclose(found.std((0, 1)), [0.2, 0.2], atol=0.03)


@pytest.mark.parametrize(
    ("schedule", "name", "steps", "tolerance"),
    [(DDPM, "ddim", 100, 0.03), (FLOW, "euler", 100, 0.02), (FLOW, "heun", 30, 0.003)],
)
def test_deterministic_samplers_follow_the_exact_path(schedule, name, steps, tolerance):
    """For one Gaussian the path is known: noise ε ends at mean + spread · ε."""
    noise = normal(3, steps + 1, 2, 500, 2)
    found = path(schedule, Settings(name))(MEAN, noise)
    assert found.shape == noise.shape
    np.testing.assert_array_equal(found[0], noise[0])
    np.testing.assert_allclose(found[-1], MEAN + 0.2 * noise[0], atol=tolerance * 4)
    assert np.abs(np.asarray(found[-1] - MEAN - 0.2 * noise[0])).mean() < tolerance


def test_heun_is_nearer_than_euler_at_the_same_number_of_passes():
    error = {}
    for name, steps in (("euler", 20), ("heun", 10)):
        noise = normal(3, 1, 2, 500, 2).repeat(steps + 1, axis=0)
        error[name] = np.abs(np.asarray(path(FLOW, Settings(name))(MEAN, noise)[-1] - MEAN - 0.2 * noise[0])).mean()
    assert error["heun"] < error["euler"] / 2


def test_temperature_scales_the_noise_of_the_steps_not_the_start():
    noise = normal(4, 11, 2, 500, 2)
    cold = path(DDPM, Settings(temperature=0.0))
    quiet = jnp.zeros_like(noise).at[0].set(noise[0])
    np.testing.assert_array_equal(cold(MEAN, noise), cold(MEAN, quiet))
    np.testing.assert_array_equal(cold(MEAN, noise)[0], noise[0])
    spreads = [np.std(path(DDPM, Settings(temperature=t))(MEAN, noise)[-1]) for t in (0.5, 1.0, 1.5)]
    assert spreads[0] < spreads[1] < spreads[2]


def test_temperature_scales_the_start_where_there_is_no_other_noise():
    for schedule, name in ((DDPM, "ddim"), (FLOW, "euler")):
        noise = normal(4, 3, 2, 5, 2)
        found = path(schedule, Settings(name, temperature=0.5))(MEAN[:, :5], noise)
        np.testing.assert_allclose(found, path(schedule, Settings(name))(MEAN[:, :5], 0.5 * noise), rtol=1e-6)


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_clipped_data_stays_within_the_bound(name):
    noise = normal(5, 11, 2, 500, 2)
    found = np.asarray(path(DDPM, Settings(name, clip=0.4))(MEAN, noise)[-1])
    assert np.abs(found).max() <= 0.4 + 1e-5
    assert np.abs(np.asarray(path(DDPM, Settings(name))(MEAN, noise)[-1])).max() > 0.6


@pytest.mark.parametrize(("schedule", "name"), [(FLOW, "euler"), (FLOW, "heun"), (DDPM, "ddim")])
def test_guidance_leads_away_from_the_null_condition(schedule, name):
    """The oracle is linear in its condition, and its null condition is zero: guidance 3 is three times the mean."""
    noise = normal(6, 6, 2, 5, 2)
    mean = MEAN[:, :5]
    found = path(schedule, Settings(name, guidance=3.0))(mean, noise)
    np.testing.assert_allclose(found, path(schedule, Settings(name))(3 * mean, noise), rtol=1e-3, atol=1e-3)
    assert np.abs(np.asarray(found - path(schedule, Settings(name))(mean, noise))).max() > 0.5


def test_guidance_leaves_the_variance_to_the_condition():
    """The oracle's variance follows its condition, which guidance must not multiply."""
    given, noise = jnp.full((1, 1, 2), 0.25), normal(6, 3, 1, 1, 2)
    network = Oracle(DDPM, 0.2)
    found = trajectory(network, DDPM, given, noise, Settings(guidance=2.0))
    respaced = DDPM.respaced(2)
    output = network(noise[0], jnp.full((1, 1), 199), 2 * given)
    index = jnp.full((1, 1), 1)
    mean = respaced.posterior_mean(respaced.start(noise[0], output[..., :2], index), noise[0], index)
    spread = jnp.exp(0.5 * respaced.log_variance(given, index))
    np.testing.assert_allclose(found[1], mean + spread * noise[1], atol=2e-3)


def test_guidance_may_differ_by_row_and_what_it_leads_away_from_may_be_given():
    noise, mean = normal(6, 6, 2, 5, 2), MEAN[:, :5]
    network = Oracle(FLOW, 0.2)
    found = trajectory(network, FLOW, mean, noise, Settings(guidance=jnp.array([[1.0], [3.0]])))
    for row, factor in enumerate((1, 3)):
        expected = path(FLOW, Settings())(factor * mean, noise)
        np.testing.assert_allclose(found[:, row], expected[:, row], rtol=1e-4, atol=1e-4)
    found = trajectory(network, FLOW, mean, noise, Settings(guidance=3.0), unconditional=mean / 2)
    np.testing.assert_allclose(found, path(FLOW, Settings())(2 * mean, noise), rtol=1e-4, atol=1e-4)


def test_guidance_schedules():
    progress = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(guidance_scale(3.0, "constant", progress), [3, 3, 3])
    np.testing.assert_allclose(guidance_scale(3.0, "linear", progress), [1, 2, 3])
    with pytest.raises(ValueError, match="'cosine'; expected"):
        guidance_scale(3.0, "cosine", progress)


@pytest.mark.parametrize("changes", [{}, {"network": "dit", "objective": "flow", "sampler": "heun"}])
def test_a_row_does_not_depend_on_those_it_rides_with(changes):
    graph, state = nnx.split(toy_head(**changes, guidance=2.0))
    run = jax.jit(lambda state, condition, keys: nnx.merge(graph, state).sample(condition, keys))
    condition, keys = normal(7, 3, 8, CONDITION), jax.random.split(jax.random.key(8), 3)
    together = run(state, condition, keys)
    for row in range(3):
        alone = run(state, condition[row : row + 1], keys[row : row + 1])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-4, atol=1e-4)
    turned = run(state, condition[::-1], keys[::-1])
    np.testing.assert_allclose(turned[::-1], together, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(together, run(state, condition, keys))
    assert np.abs(np.asarray(together - run(state, condition, jax.random.split(jax.random.key(9), 3)))).min() > 0


def test_one_key_gives_each_row_its_own_noise():
    found = sampler(DDPM, 10, Settings())(MEAN[:, :5], jax.random.key(0))
    assert np.abs(np.asarray(found[0] - found[1])).min() > 1e-4
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(jnp.arange(2))
    np.testing.assert_array_equal(sampler(DDPM, 10, Settings())(MEAN[:, :5], keys), found)


def test_sampling_from_keys_is_the_trajectory_of_their_noise():
    key = jax.random.split(jax.random.key(1), 2)
    noise = jnp.stack(
        [jnp.stack([jax.random.normal(jax.random.fold_in(row, step), (5, 2)) for row in key]) for step in range(11)]
    )
    found = sampler(DDPM, 10, Settings())(MEAN[:, :5], key)
    network = Oracle(DDPM, 0.2, variance=-0.5)
    np.testing.assert_allclose(found, trajectory(network, DDPM, MEAN[:, :5], noise)[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "steps", "settings", "message"),
    [
        (DDPM, 201, Settings(), "steps=201: expected 2 to 200"),
        (DDPM, 1, Settings(), "steps=1: expected 2 to 200"),
        (FLOW, 0, Settings(), "steps=0: expected 1 or more"),
        (DDPM, 5, Settings("euler"), "sampler='euler' does not sample objective='ddpm'"),
        (FLOW, 5, Settings("ddim"), "sampler='ddim' does not sample objective='flow'"),
    ],
)
def test_what_cannot_be_sampled_is_an_error(schedule, steps, settings, message):
    with pytest.raises(UsageError, match=message):
        sample(Oracle(schedule, 0.2), schedule, MEAN[:, :5], jax.random.key(0), steps, settings)


def test_guidance_without_a_null_condition_is_an_error():
    network = toy_head(condition_dropout=0.0).network
    with pytest.raises(UsageError, match="no null condition"):
        sample(network, DDPM, normal(7, 3, 8, CONDITION), jax.random.key(0), 5, Settings(guidance=2.0))
