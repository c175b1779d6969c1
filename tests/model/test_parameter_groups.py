"""Which group a parameter is in, the split of a tree by it, and what the config refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from tiny_config import tiny_config

from unihetero_jax.errors import UsageError
from unihetero_jax.model import groups
from unihetero_jax.model.build import define
from unihetero_jax.parallel import parameter_paths

NAMES = ("decoder", "embeddings", "adapters", "heads", "towers")


@pytest.fixture(scope="module")
def shapes():
    return define(tiny_config(**{"model.decoder.tie_embeddings": False}), 64).shapes()


def freeze(*names: str, **changes):
    return tiny_config(**{f"optimizer.groups.{name}.frozen": True for name in names}, **changes)


def test_every_parameter_of_the_model_is_in_a_group(shapes):
    found = {}
    parameter_paths.map_with_path(lambda path, _: found.setdefault(groups.group_of(path), set()).add(path[:2]), shapes)
    assert set(found) == set(NAMES)
    assert found["embeddings"] == {("decoder", "embedding"), ("decoder", "head")}
    assert found["decoder"] == {("decoder", "layers"), ("decoder", "norm")}
    assert ("understanding_adapter", "positions") in found["adapters"]


def test_a_prefix_is_whole_names_and_the_unknown_is_an_error():
    assert groups.group_of(("understanding_tower", "layers", "kernel")) == "towers"
    assert groups.group_of(("decoder", "embedding_norm", "scale")) == "decoder"
    with pytest.raises(ValueError, match=r"tower_of_babel\.kernel belongs to no group"):
        groups.group_of(("tower_of_babel", "kernel"))


@pytest.mark.parametrize("frozen", [(), ("towers",), ("decoder", "embeddings"), NAMES[1:]], ids=str)
def test_join_undoes_split(shapes, frozen):
    trained, still = groups.split(freeze(*frozen), shapes)
    held = {groups.group_of(tuple(key.key for key in path)) for path, _ in jax.tree.leaves_with_path(still)}
    assert held == set(frozen)
    assert parameter_paths.join(still, trained) == parameter_paths.join(trained, still) == shapes


def test_only_what_is_frozen_is_held_in_fewer_bits(shapes):
    found = groups.as_stored(freeze("towers", **{"optimizer.frozen_dtype": "bfloat16"}), shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(found["understanding_tower"])} == {jnp.dtype("bfloat16")}
    rest = {name: tree for name, tree in found.items() if name != "understanding_tower"}
    assert {leaf.dtype for leaf in jax.tree.leaves(rest)} == {jnp.dtype("float32")}


def test_a_model_of_which_nothing_is_trained_is_refused(shapes):
    with pytest.raises(UsageError, match="every parameter of this model is frozen"):
        groups.split(freeze(*NAMES), shapes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"optimizer.groups.towers.learning_rate_factor": 0.0}, r"towers\.learning_rate_factor=0\.0.*frozen=True"),
        ({"optimizer.groups.heads.weight_decay_factor": -1.0}, r"heads\.weight_decay_factor=-1\.0: expected 0 or more"),
        (
            {
                "optimizer.groups.towers.frozen": True,
                "optimizer.groups.adapters.frozen": True,
                "losses.semantic.target_gradient": "ema",
            },
            "nothing to average; set target_gradient='stop'",
        ),
    ],
)
def test_impossible_groups_are_refused(changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        tiny_config(**changes)
