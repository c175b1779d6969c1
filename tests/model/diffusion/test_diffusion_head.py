"""The head as a whole: it learns, samples land on the modes of their condition, and splitting it changes nothing."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from diffusion_toys import CONDITION, normal, toy_head
from flax import nnx
from jax.sharding import NamedSharding

from unihetero_jax.config import MeshConfig, check
from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion.config import DiffusionConfig, sampler_of
from unihetero_jax.model.diffusion.head import DiffusionHead
from unihetero_jax.parallel.mesh import RULES, check_sharded, make_mesh, sharding

# Four classes, a mode in each corner; an image is two tokens.
MODES = jnp.array([[0.7, 0.7], [0.7, -0.7], [-0.7, 0.7], [-0.7, -0.7]])


def hits(network: str, objective: str) -> float:
    """Trains a head; the share of samples that lie at the mode of their class.

    Samples that ignore their condition would find a quarter of them. For the DiT, a token's class is told to the
    *other* token of its image.
    """
    config = DiffusionConfig(
        network=network,
        objective=objective,
        depth=2,
        width=48,
        heads=2,
        draws=2,
        timesteps=100,
        steps=20,
        clip=1.5,
    )

    def draw(key, rows):
        class_key, noise_key = jax.random.split(key)
        classes = jax.random.randint(class_key, (rows, 2), 0, 4)
        told = classes[:, ::-1] if network == "dit" else classes
        return classes, jax.nn.one_hot(told, 4), 0.05 * jax.random.normal(noise_key, (rows, 2, 2))

    @jax.jit
    def run():
        head = DiffusionHead(config, 4, 2, 2, rngs=nnx.Rngs(0))
        graph, state = nnx.split(head, nnx.Param)
        optimizer = optax.adam(4e-3)

        def loss(state, key):
            classes, condition, noise = draw(key, 64)
            return jnp.mean(nnx.merge(graph, state).losses(MODES[classes] + noise, condition, key))

        def step(carry, number):
            state, moments = carry
            gradient = jax.grad(loss)(state, jax.random.fold_in(jax.random.key(1), number))
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(state, updates), moments), None

        (state, _), _ = jax.lax.scan(step, (state, optimizer.init(state)), jnp.arange(300))
        classes, condition, _ = draw(jax.random.key(2), 200)
        samples = nnx.merge(graph, state).sample(condition, jax.random.key(3))
        return jnp.mean(jnp.linalg.norm(samples - MODES[classes], axis=-1) < 0.35)

    return float(run())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ddpm", "flow"])
@pytest.mark.parametrize("network", ["mlp", "dit"])
def test_samples_land_on_the_mode_of_their_condition(network, objective):
    assert hits(network, objective) > 0.9


def placements(state, mesh):
    """Where the rules put each parameter."""

    def place(variable):
        axes, shape = variable.get_metadata()["axes"], variable.get_value().shape
        axes = ("layers",) * (len(shape) - len(axes)) + tuple(axes)
        return variable.replace(NamedSharding(mesh, RULES.spec(axes, shape, mesh)))

    return jax.tree.map(place, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


@pytest.mark.parametrize(("network", "objective"), [("mlp", "ddpm"), ("dit", "flow")])
def test_split_over_devices_it_gives_the_same(network, objective):
    graph, state = nnx.split(toy_head(network=network, objective=objective, draws=2, channels=4, width=32), nnx.Param)
    target, condition = normal(0, 4, 8, 4), normal(1, 4, 8, CONDITION)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 2))
    def compute(state, target, condition):
        return jnp.sum(nnx.merge(graph, state).losses(target, condition, jax.random.key(0)))

    split = jax.device_put(state, placements(state, mesh))
    kernel = split["network"]["time_output"]["kernel"].get_value()
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    found = compute(split, *jax.device_put((target, condition), sharding(mesh, "batch")))
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(compute(state, target, condition)), strict=True):
        scale = np.abs(np.asarray(right)).max()
        np.testing.assert_allclose(np.asarray(left) / scale, np.asarray(right) / scale, atol=1e-4)


@pytest.mark.parametrize("network", ["mlp", "dit"])
def test_nothing_large_is_replicated(network):
    config = DiffusionConfig(network=network)
    head = nnx.eval_shape(lambda: DiffusionHead(config, 512, 16, 16, rngs=nnx.Rngs(0)))
    state = nnx.state(head, nnx.Param)
    assert check_sharded(state, placements(state, make_mesh(MeshConfig(fsdp=4, tensor=2)))) <= 0.02


def test_linear_guidance_grows_along_the_image():
    """The first token of an image is not guided, and a part of an image continues where it is."""
    condition, keys = normal(1, 2, 8, CONDITION), jax.random.split(jax.random.key(0), 2)

    def sampler(**changes):
        graph, state = nnx.split(toy_head(objective="flow", **changes))
        return jax.jit(lambda first: nnx.merge(graph, state).sample(condition, keys, first=first))

    plain, halfway = sampler()(0), sampler(guidance=2.5)(0)
    grow = sampler(guidance=4.0, guidance_schedule="linear")
    linear, later = grow(0), grow(2)
    for start in (0, 4):
        np.testing.assert_allclose(linear[:, start], plain[:, start], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(linear[:, start + 2], halfway[:, start + 2], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(later[:, start], halfway[:, start], rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(halfway - plain)).max(-1).min() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "here.depth=0: expected a value above 0"),
        ({"draws": 0}, "here.draws=0"),
        ({"network": "dit", "width": 10, "heads": 4}, "here.width=10 is not a multiple of here.heads=4"),
        ({"timesteps": 1}, "here.timesteps=1: expected 2 or more"),
        ({"steps": 1001}, "here.steps=1001: expected 2 to here.timesteps=1000"),
        ({"steps": 0, "objective": "flow"}, "here.steps=0: expected a value above 0"),
        ({"condition_dropout": 1.0}, "here.condition_dropout=1.0: expected a value from 0, below 1"),
        ({"condition_dropout": 0.0, "guidance": 2.0}, "here.guidance=2.0 needs here.condition_dropout above 0"),
        ({"temperature": -1.0}, "here.temperature=-1.0: expected 0 or more"),
        ({"sampler": "heun"}, "here.sampler='heun' does not sample objective='ddpm'; expected one of"),
        ({"sampler": "ddim", "objective": "flow"}, "here.sampler='ddim'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    check(DiffusionConfig(), "here")
    with pytest.raises(UsageError, match=message):
        check(dataclasses.replace(DiffusionConfig(), **changes), "here")


def test_a_sampler_is_chosen_for_the_objective():
    assert (sampler_of("ddpm", "auto"), sampler_of("flow", "auto")) == ("ancestral", "euler")
