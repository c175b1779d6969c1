"""Parameters start from the seed and their path: whatever else a model has, and in whatever order it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest
from flax import nnx

from unihetero_jax.model.build import define
from unihetero_jax.parallel.module_definition import define_module
from unihetero_jax.towers.siglip.config import PRESETS

KEY = jax.random.key(3)


def start(config, key=KEY):
    """Initial parameters by dotted path."""
    return flat(jax.jit(define(config, packed.VOCABULARY).init)(key))


def flat(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def made(create, key=KEY):
    return flat(jax.jit(define_module(create).init)(key))


def assert_alike(found, expected, at_least):
    """The parameters that both have, and that have the same shape in both, are the same to the last bit."""
    common = [name for name in found if name in expected and found[name].shape == expected[name].shape]
    assert len(common) >= at_least, common
    for name in common:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


class Small(nnx.Module):
    """Plain Flax: layers of several kinds, a stack of layers, a parameter of its own, constants."""

    def __init__(
        self, rngs, order=("first", "second", "convolution", "table", "layers", "norm"), split_by="split_rngs"
    ):
        def stack(rngs):
            make = nnx.vmap(lambda rngs: Layer(rngs, order))
            if split_by == "split":
                return make(rngs.split(3))
            return nnx.split_rngs(splits=3)(make)(rngs)

        makers = {
            "first": lambda: nnx.Linear(4, 5, bias_init=nnx.initializers.normal(), rngs=rngs),
            "second": lambda: nnx.Linear(4, 5, rngs=rngs),
            "convolution": lambda: nnx.Conv(2, 3, (3, 3), rngs=rngs),
            "table": lambda: nnx.Param(jax.random.normal(rngs.params(), (6, 2))),
            "layers": lambda: stack(rngs),
            "norm": lambda: nnx.LayerNorm(4, rngs=rngs),
            "mixed": lambda: nnx.Param(jax.random.normal(rngs(), (8,)) - jax.random.normal(rngs(), (8,))),
            "many": lambda: nnx.List([nnx.Linear(4, 5, rngs=rngs.fork()) for _ in range(2)]),
        }
        for name in order:
            setattr(self, name, makers[name]())


class Layer(nnx.Module):
    def __init__(self, rngs, order):
        inner = {"up": (4, 6), "gate": (4, 6), "down": (6, 4)}
        for name in inner if order[0] == "first" else reversed(inner):
            setattr(self, name, nnx.Linear(*inner[name], rngs=rngs))


def test_arms_of_one_seed_start_alike():
    base = start(packed.configure())
    assert any(name.startswith("pixel_head") for name in base)
    tied = packed.configure().model.decoder.tie_embeddings
    siglip = {"kind": "siglip", **PRESETS["siglip-tiny"]}
    others = [
        {"losses.pixel.weight": 0.0, "losses.semantic.head": "linear"},
        {"losses.pixel.kind": "diffusion", "losses.semantic.weight": 0.0, "model.lora.rank": 4},
        {"model.decoder.tie_embeddings": not tied, "model.decoder.qkv_bias": True, "model.decoder.qk_norm": True},
        {f"model.understanding_tower.{key}": value for key, value in siglip.items()},
    ]
    for changes in others:
        other = start(packed.configure(**changes))
        assert other.keys() != base.keys(), changes
        assert_alike(other, base, at_least=10)


@pytest.mark.parametrize("split_by", ["split_rngs", "split"])
def test_the_order_in_which_a_module_makes_its_parameters_changes_nothing(split_by):
    names = ["first", "second", "convolution", "table", "layers", "norm"]
    expected = made(lambda rngs: Small(rngs, names, split_by))
    assert len(expected) == 15
    # Also the layers of the stack are made the other way round.
    assert_alike(made(lambda rngs: Small(rngs, names[::-1], split_by)), expected, at_least=15)
    more = made(lambda rngs: Small(rngs, ["mixed", "many", *names[1:]], split_by))
    assert_alike(more, expected, at_least=13)


def test_parameters_are_drawn_as_the_module_says():
    found = made(Small)
    np.testing.assert_array_equal(found["norm.scale"], np.ones(4))
    np.testing.assert_array_equal(found["second.bias"], np.zeros(5))
    assert found["layers.up.kernel"].shape == (3, 4, 6)
    large = made(lambda rngs: nnx.Linear(400, 500, rngs=rngs))["kernel"]
    assert large.std() == pytest.approx(400**-0.5, rel=0.01)
    assert abs(large.mean()) < 0.001


def test_nothing_random_is_used_twice():
    found = made(lambda rngs: Small(rngs, ["first", "second", "layers", "mixed", "many"]))
    assert np.unique(found["mixed"]).size == 8, "two draws of one parameter are not the same"
    assert not np.array_equal(found["first.kernel"], found["second.kernel"])
    assert not np.array_equal(found["many.0.kernel"], found["many.1.kernel"])
    assert not np.array_equal(found["layers.up.kernel"], found["layers.gate.kernel"])
    assert not np.array_equal(found["layers.up.kernel"][0], found["layers.up.kernel"][1])
    other = made(lambda rngs: Small(rngs, ["first", "second", "layers", "mixed", "many"]), jax.random.key(4))
    for name in found:
        assert np.array_equal(found[name], other[name]) == (not np.any(found[name])), name


def test_abstractly_and_compiled_it_is_the_same():
    definition = define_module(Small)
    assert jax.tree.map(jnp.shape, definition.shapes()) == jax.tree.map(jnp.shape, jax.eval_shape(definition.init, KEY))
    found, expected = flat(definition.init(KEY)), made(Small)
    assert found.keys() == expected.keys()
    for name in expected:  # the compiler folds constant factors: float32 rounding
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
