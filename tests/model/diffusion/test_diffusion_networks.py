"""Networks: what a token may read, what it is told, and what the options leave alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_toys import CONDITION, TOKENS, normal, toy_head
from flax import nnx

from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion.config import DiffusionConfig
from unihetero_jax.model.diffusion.head import DiffusionHead
from unihetero_jax.model.diffusion.networks import timestep_embedding

NOISED, GIVEN = normal(1, 2, 8, 3), normal(2, 2, 8, CONDITION)
TIME = jnp.broadcast_to(jnp.array([3, 40])[:, None], (2, 8))


@pytest.fixture(scope="module", params=["mlp", "dit"])
def kind(request):
    return request.param


@functools.cache
def compiled(**changes):
    """(noised, timestep, condition) → output, compiled once."""
    graph, state = nnx.split(toy_head(**changes).network)
    run = jax.jit(lambda state, *given: nnx.merge(graph, state)(*given))
    return functools.partial(run, state)


def moved(kind, **changes):
    """Which tokens' outputs change with a change of what goes in, [B, M]."""
    given = {"noised": NOISED, "timestep": TIME, "condition": GIVEN}
    before, after = (compiled(network=kind)(*some.values()) for some in (given, {**given, **changes}))
    return np.abs(np.asarray(before - after)).max(axis=-1) > 1e-5


def test_the_timestep_embedding_is_the_formula():
    found = timestep_embedding(jnp.array([7.0]), 8)[0]
    angles = [7 * 10_000 ** (-i / 4) for i in range(4)]
    np.testing.assert_allclose(found, [*np.cos(angles), *np.sin(angles)], atol=1e-5)


def test_a_head_starts_with_predictions_of_zero():
    """As adaLN-Zero does; each block is then the identity."""
    for kind in ("mlp", "dit"):
        config = DiffusionConfig(network=kind, depth=1, width=16, heads=2)
        head = nnx.jit(lambda config=config: DiffusionHead(config, CONDITION, TOKENS, 3, rngs=nnx.Rngs(0)))()
        assert (np.asarray(head.network(NOISED, TIME, GIVEN)) == 0).all()


def test_latents_conditions_and_times_reach_whom_they_should(kind):
    expected = np.zeros((2, 8), bool)
    expected[1, slice(4, 8) if kind == "dit" else 5] = True  # the second image of the second row, or the token alone
    for name, value in (("noised", NOISED), ("condition", GIVEN), ("timestep", TIME)):
        changed = value.at[1, 5].add(1)
        np.testing.assert_array_equal(moved(kind, **{name: changed}), expected, err_msg=name)


def test_the_dit_knows_where_a_token_is():
    same = compiled(network="dit")(jnp.ones_like(NOISED), TIME, jnp.ones_like(GIVEN))[0, :4]
    assert (np.abs(np.asarray(same[1:] - same[0])).max(axis=-1) > 1e-3).all()


def test_half_an_image_is_refused():
    with pytest.raises(ValueError, match="6 tokens are not whole images of 4"):
        toy_head(network="dit").network(NOISED[:, :6], TIME[:, :6], GIVEN[:, :6])


def test_bfloat16_is_close_and_its_output_float32(kind):
    found, expected = (compiled(network=kind, dtype=dtype)(NOISED, TIME, GIVEN) for dtype in ("bfloat16", "float32"))
    assert found.dtype == jnp.float32
    error = np.abs(np.asarray(found - expected)).max() / np.abs(np.asarray(expected)).max()
    assert 1e-5 < error < 0.05


def test_without_a_null_condition_nothing_can_be_dropped():
    with pytest.raises(UsageError, match="no null condition; train it with condition_dropout"):
        toy_head(condition_dropout=0.0).network.unconditional(GIVEN)


def test_the_null_condition_stands_where_the_condition_is_dropped():
    network = toy_head().network
    where = jnp.zeros((2, 8), bool).at[0, 3].set(True)
    found = network.dropped(GIVEN, where)
    np.testing.assert_array_equal(found[0, 3], network.null_condition[...])
    np.testing.assert_array_equal(found[1], GIVEN[1])
    np.testing.assert_array_equal(found[0, :3], GIVEN[0, :3])


def test_every_parameter_has_axes_and_a_gradient(kind):
    network = toy_head(network=kind).network
    graph, state = nnx.split(network, nnx.Param)

    def loss(state):
        network = nnx.merge(graph, state)
        given = network.dropped(GIVEN, jnp.zeros((2, 8), bool).at[:, :TOKENS].set(True))
        return jnp.sum(jnp.square(network(NOISED, TIME, given)))

    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(state)):
        assert np.abs(np.asarray(gradient)).max() > 0, path
    for path, variable in nnx.to_flat_state(state):
        axes, shape = variable.get_metadata()["axes"], variable.get_value().shape
        assert len(axes) == len(shape) - ("blocks" in path), path
