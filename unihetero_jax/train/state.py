"""The training state: a dict of arrays that a step maps to the next one.

``params``: parameters, nested dicts, including frozen ones. ``opt_state``: optax's, of the trained parameters only.
``ema``: moving average of some of the trained parameters; empty when the learner has none.
``history``: losses and norms for the detection of spikes, where it is on (``train.spikes``).
``step``: int32, steps done. ``rng``: key data of the run's seed, constant.
Everything random in a step is a function of (rng, step); nothing comes from the clock.
"""

from __future__ import annotations

from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unihetero_jax.train import spikes
from unihetero_jax.train.learner import Learner

State = dict[str, Any]


def initial_state(learner: Learner, optimizer: optax.GradientTransformation) -> State:
    """Build the state before the first step; pure in the config's seed.

    Raises:
      UsageError: the config trains nothing.
    """
    params = learner.initial_params()
    trained, _ = learner.split(params)
    return {
        "params": params,
        "opt_state": optimizer.init(trained),
        "ema": learner.averaged(trained),
        **spikes.initial(learner.config.train),
        "step": jnp.int32(0),
        "rng": jax.random.key_data(jax.random.fold_in(jax.random.key(learner.config.train.seed), 1)),
    }


def start_new(learner: Learner, optimizer: optax.GradientTransformation, places: State, mesh: Mesh) -> State:
    """Build the sharded state of a new run, with the weights that it starts from.

    Args:
      learner: what is trained.
      optimizer: of the learner.
      places: shardings of the state.
      mesh: the run's device mesh.

    Raises:
      UsageError: the weights are of another model.
    """
    state: State = jax.jit(lambda: initial_state(learner, optimizer), out_shardings=places)()
    state["params"] = learner.start(state["params"], mesh)
    # A copy: the step receives both, and may reuse the memory of each for its result.
    state["ema"] = jax.tree.map(jnp.copy, learner.averaged(learner.split(state["params"])[0]))
    return state


def state_shardings(learner: Learner, optimizer: optax.GradientTransformation, mesh: Mesh) -> tuple[State, State]:
    """Return shapes and shardings of the state; optimizer moments are sharded like their parameter."""
    shapes = jax.eval_shape(lambda: initial_state(learner, optimizer))
    places = learner.model.shardings(mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    trained, _ = learner.split(places)
    # An optimizer of several rules has nothing where another rule has the parameter.
    opt_state = optax.tree_map_params(
        optimizer,
        lambda moment, place: moment if isinstance(moment, optax.MaskedNode) else place,
        shapes["opt_state"],
        trained,
        transform_non_params=lambda _: whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return shapes, {
        "params": places,
        "opt_state": opt_state,
        "ema": learner.averaged(trained),
        **{name: jax.tree.map(lambda _: whole, shapes[name]) for name in shapes.keys() & {spikes.HISTORY}},
        "step": whole,
        "rng": whole,
    }


def stored(learner: Learner, state: State) -> State:
    """Return the part of a state (or of its shapes or shardings) that checkpoints store."""
    return {**state, "params": learner.split(state["params"])[0]} if learner.partial else state


def to_pure(state: State) -> dict[str, Any]:
    """Return the state as nested dicts of arrays only, as it is stored."""
    return {**state, "opt_state": flax.serialization.to_state_dict(state["opt_state"])}


def from_pure(pure: dict[str, Any], like: State) -> State:
    """Invert ``to_pure``; ``like`` is a state (or its shapes) with the optimizer's own structure."""
    return {**pure, "opt_state": flax.serialization.from_state_dict(like["opt_state"], pure["opt_state"])}
