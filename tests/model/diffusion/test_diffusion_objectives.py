"""Objectives: the formulas in NumPy, who shares a time and a dropped condition, and where gradients go."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_toys import CONDITION, Oracle, normal, toy_head
from flax import nnx

from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion.objectives import DDPM, FlowMatching
from unihetero_jax.model.diffusion.schedules import CosineSchedule, FlowSchedule

SCHEDULE = CosineSchedule(30)


class Recorder:
    """Remembers what it was asked, and predicts zeros."""

    def __init__(self, outputs, group=1):
        self.outputs, self.group = outputs, group

    def dropped(self, condition, where):
        return jnp.where(where[..., None], 0.0, condition)

    def __call__(self, noised, timestep, condition):
        self.noised, self.timestep, self.condition = noised, np.asarray(timestep), np.asarray(condition)
        return jnp.zeros((*noised.shape[:-1], self.outputs))


class Fixed:
    """Predicts what it was given."""

    group = 1

    def __init__(self, output):
        self.output = output

    def __call__(self, noised, timestep, condition):
        return self.output


@pytest.mark.parametrize("step", [0, 1, 17, 29])
def test_the_losses_of_ddpm_are_the_formula(step):
    chance = np.random.default_rng(step)
    target, noise = chance.uniform(-1, 1, 4), chance.standard_normal(4)
    target[:2] = -1, 1  # the open ends of the likelihood
    epsilon, fraction = noise + 0.01 * chance.standard_normal(4), chance.uniform(-1, 1, 4)
    bars = np.append(1.0, SCHEDULE.alpha_bar)  # of the step before, at the step's own number
    bar, before = bars[step + 1], bars[step]
    beta = 1 - bar / before
    noised = math.sqrt(bar) * target + math.sqrt(1 - bar) * noise

    def mean(start):
        of_start = math.sqrt(before) * beta / (1 - bar)
        return of_start * start + math.sqrt(bar / before) * (1 - before) / (1 - bar) * noised

    least = beta * (1 - before) / (1 - bar) if step else SCHEDULE.beta[1] * (1 - bars[1]) / (1 - bars[2])
    variance = np.exp((fraction + 1) / 2 * math.log(beta) + (1 - fraction) / 2 * math.log(least))
    guess = mean((noised - math.sqrt(1 - bar) * epsilon) / math.sqrt(bar))
    if step:
        bound = 0.5 * (np.log(variance / least) - 1 + least / variance + (mean(target) - guess) ** 2 / variance)
    else:

        def below(edge):
            y = edge / np.sqrt(variance)
            return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

        upper, lower = below(target - guess + 1 / 255), below(target - guess - 1 / 255)
        lower[0], upper[1] = 0.0, 1.0
        bound = -np.log(np.maximum(upper - lower, 1e-12))
    output = jnp.asarray(np.concatenate([epsilon, fraction]), jnp.float32)
    given = [jnp.asarray(x, jnp.float32) for x in (target, np.zeros(6), noise)]
    terms = DDPM(schedule=SCHEDULE).terms(Fixed(output), given[0], given[1], jnp.int32(step), given[2])
    np.testing.assert_allclose(terms.mse, np.mean((noise - epsilon) ** 2), rtol=1e-4)
    np.testing.assert_allclose(terms.vb, np.mean(bound) / math.log(2), rtol=2e-3)


def test_the_bound_teaches_the_variance_alone_and_the_error_the_noise_alone():
    target, noise, output = normal(0, 5, 3), normal(1, 5, 3), normal(2, 5, 6)
    time = jnp.arange(0, 25, 5)

    def term(output, name):
        terms = DDPM(schedule=SCHEDULE).terms(Fixed(output), target, target, time, noise)
        return jnp.sum(getattr(terms, name))

    for name, taught, left in (("mse", np.s_[:, :3], np.s_[:, 3:]), ("vb", np.s_[1:, 3:], np.s_[:, :3])):
        gradient = np.asarray(jax.jit(jax.grad(term), static_argnums=1)(output, name))
        assert (gradient[left] == 0).all(), name
        assert (np.abs(gradient[taught]) > 0).all(), name


def test_the_flow_is_taught_the_velocity():
    target, noise, time = normal(0, 4, 3), normal(1, 4, 3), jnp.array([0.0, 0.3, 0.9, 1.0])
    objective = FlowMatching()
    found = objective.token_losses(Fixed(noise - target + 0.5), target, target, time, noise)
    np.testing.assert_allclose(found, 0.25, rtol=1e-5)
    recorder = Recorder(3)
    objective.token_losses(recorder, target, target, time, noise)
    np.testing.assert_allclose(recorder.noised, (1 - time)[:, None] * target + time[:, None] * noise, rtol=1e-6)
    np.testing.assert_allclose(recorder.timestep, 1000 * time)


@pytest.mark.parametrize("group", [1, 4])
def test_the_tokens_of_a_group_share_a_time_and_a_dropped_condition(group):
    recorder = Recorder(3, group)
    objective = FlowMatching(draws=3, condition_dropout=0.3)
    objective.losses(recorder, normal(0, 50, 8, 3), jnp.ones((50, 8, 5)), jax.random.key(0))
    assert recorder.noised.shape == (50, 24, 3)
    times = recorder.timestep.reshape(50, 24 // group, group)
    gone = (recorder.condition == 0).all(-1).reshape(50, 24 // group, group)
    assert (times == times[..., :1]).all()
    assert (gone == gone[..., :1]).all()
    assert len(np.unique(times[..., 0])) == times[..., 0].size, "every draw of every group has its own"
    assert np.mean(gone) == pytest.approx(0.3, abs=0.08)


def test_without_dropout_every_condition_stays():
    recorder = Recorder(3)
    FlowMatching().losses(recorder, normal(0, 5, 8, 3), jnp.ones((5, 8, 5)), jax.random.key(0))
    assert (recorder.condition == 1).all()


def test_draws_are_averaged_token_by_token():
    """A network that predicts zeros has the loss (noise − data)²; noise comes back from what it was asked."""
    recorder, target = Recorder(3), normal(0, 2, 4, 3)
    found = FlowMatching(draws=3).losses(recorder, target, jnp.ones((2, 4, 5)), jax.random.key(1))
    time = recorder.timestep[..., None] / 1000
    tiled = np.tile(target, (1, 3, 1))
    noise = (np.asarray(recorder.noised) - (1 - time) * tiled) / time
    error = np.mean((noise - tiled) ** 2, axis=-1).reshape(2, 3, 4)
    np.testing.assert_allclose(found, error.mean(1), rtol=1e-2)
    assert error.std(1).min() > 1e-3, "and the draws differ"


def test_times_are_drawn_from_the_whole_range():
    key = jax.random.key(0)
    steps = np.asarray(DDPM(schedule=SCHEDULE).times(key, (3000,)))
    assert set(steps) == set(range(30))
    uniform = np.asarray(FlowMatching().times(key, (3000,)))
    middle = np.asarray(FlowMatching(times_from="logit_normal").times(key, (3000,)))
    assert np.mean((uniform > 0.25) & (uniform < 0.75)) == pytest.approx(0.5, abs=0.03)
    assert np.mean((middle > 0.25) & (middle < 0.75)) == pytest.approx(math.erf(math.log(3) / math.sqrt(2)), abs=0.03)


def test_the_best_network_has_the_smallest_loss():
    """The expectation is the minimum of a squared error: an oracle of another spread is worse."""
    mean = jnp.broadcast_to(jnp.array([0.5, -0.3]), (200, 8, 2))
    target = mean + 0.2 * normal(0, 200, 8, 2)
    for objective in (FlowMatching(draws=2), DDPM(draws=2, schedule=SCHEDULE)):

        @jax.jit
        def loss(spread, objective=objective):
            return jnp.mean(objective.losses(Oracle(objective.schedule, spread), target, mean, jax.random.key(1)))

        assert loss(0.2) < min(loss(0.1), loss(0.4))


@pytest.mark.parametrize("changes", [{}, {"network": "dit", "objective": "flow"}])
def test_losses_are_a_function_of_the_key_and_reach_the_hidden_states(changes):
    graph, state = nnx.split(toy_head(**changes, draws=2))

    @jax.jit
    def run(state, condition, key):
        """The losses, and the gradient of one token's."""
        losses, back = jax.vjp(lambda c: nnx.merge(graph, state).losses(normal(0, 2, 8, 3), c, key), condition)
        return losses, back(jnp.zeros((2, 8)).at[1, 5].set(1.0))[0]

    condition = normal(1, 2, 8, CONDITION)
    losses, gradient = run(state, condition, jax.random.key(0))
    assert losses.shape == (2, 8)
    np.testing.assert_array_equal(losses, run(state, condition, jax.random.key(0))[0])
    assert (np.asarray(losses) != np.asarray(run(state, condition, jax.random.key(1))[0])).all()
    expected = np.zeros((2, 8), bool)
    expected[1, slice(4, 8) if changes else 5] = True
    np.testing.assert_array_equal(np.abs(np.asarray(gradient)).max(-1) > 0, expected)


def test_parts_of_images_and_dropping_without_a_null_condition_are_errors():
    target, condition = normal(0, 2, 6, 3), normal(1, 2, 6, CONDITION)
    with pytest.raises(ValueError, match="6 tokens per row are not whole images of 4"):
        toy_head(network="dit").losses(target, condition, jax.random.key(0))
    network = toy_head(condition_dropout=0.0).network
    with pytest.raises(UsageError, match="no null condition"):
        DDPM(condition_dropout=0.1).losses(network, target, condition, jax.random.key(0))
    assert FlowSchedule() == FlowMatching().schedule
