"""LoRA's factors: which linears they go to, what they compute, that they merge; and the digest of a base."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from unihetero_jax.config import Config, LoraConfig, MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.model import lora
from unihetero_jax.model.build import define
from unihetero_jax.model.decoder import linear
from unihetero_jax.model.lora_base import digest
from unihetero_jax.parallel.mesh import RULES, make_mesh
from unihetero_jax.parallel.parameter_paths import dotted

LINEARS = {f"decoder.layers.{name}" for name in ("query", "key", "value", "output", "gate", "up", "down")}
CONFIG = LoraConfig(rank=4, alpha=6.0, dropout=0.0)


def configure(**changes) -> Config:
    return packed.configure(**{"model.lora.rank": 4, "model.lora.alpha": 6.0, "model.lora.dropout": 0.5, **changes})


class Toy(nnx.Module):
    """A tower with a list of one linear that has a bias, and a head."""

    def __init__(self):
        self.understanding_tower = nnx.List([linear(6, 5, ("pixels", "features"), jnp.float32, nnx.Rngs(0))])
        self.semantic_head = linear(5, 5, ("features", None), jnp.float32, nnx.Rngs(1))


def names(targets) -> set[str]:
    return {dotted(target.path) for target in targets}


@pytest.fixture(scope="module")
def definition():
    return define(configure(), packed.VOCABULARY)


@pytest.fixture(scope="module")
def params(definition):
    """Random parameters, B included."""
    chance = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: jnp.asarray(chance.normal(0, 0.3, leaf.shape), leaf.dtype), definition.shapes())


def hidden(definition, params, key=None):
    config = configure()
    batch = {name: jnp.asarray(array) for name, array in packed.random_batch(config).items()}

    @jax.jit
    def run(params):
        model = definition.bind(params, key)
        return model.hidden(batch, model.encode(batch))

    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params))


def test_patterns_name_the_linears_of_decoder_and_towers(definition):
    assert names(definition.targets) == LINEARS
    some = define(configure(**{"model.lora.targets": "*.query, decoder.layers.*down"}), packed.VOCABULARY)
    assert names(some.targets) == {"decoder.layers.query", "decoder.layers.down"}
    assert names(lora.find_targets(Toy(), LoraConfig(targets="*"))) == {"understanding_tower.0"}


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        (
            "decoder.layers.*,decoder.layers.qurey",
            r"'decoder\.layers\.qurey' matches no linear; did you mean 'dec",
        ),
        ("adapter.*", r"'adapter\.\*' matches no linear.*there are decoder\.layers\.down, .*value"),
        (" , ", "targets is empty; expected patterns such as"),
    ],
)
def test_a_pattern_without_a_match_is_refused(targets, complaint):
    with pytest.raises(UsageError, match=complaint):
        define(configure(**{"model.lora.targets": targets}), packed.VOCABULARY)


def test_a_linear_without_logical_axes_is_one_too():
    model = Toy()
    model.understanding_tower.append(nnx.Linear(5, 3, rngs=nnx.Rngs(2)))
    (own,) = lora.find_targets(model, LoraConfig(rank=2, targets="understanding_tower.1"))
    assert (own.stack, own.inputs, own.outputs) == ((), (5,), (3,))
    assert lora.shapes((own,), 2)["understanding_tower"][1]["b"].shape == (2, 3)


def test_the_update_is_the_formula_alone_and_in_a_stack(params, definition):
    chance = np.random.default_rng(0)
    toy = Toy()
    base = toy.understanding_tower[0]
    (target,) = lora.find_targets(toy, LoraConfig(targets="understanding_tower.*"))
    kernel, bias = np.asarray(base.kernel[...]), np.asarray(base.bias[...])
    a, b, x = (chance.normal(size=shape).astype(np.float32) for shape in ((6, 4), (4, 5), (3, 2, 6)))
    lora.adapt(toy, (target,), {"understanding_tower": {0: {"a": a, "b": b}}}, CONFIG)
    found = toy.understanding_tower[0](x)
    np.testing.assert_allclose(found, x @ kernel + bias + 6.0 / 4 * (x @ a @ b), rtol=1e-4, atol=1e-4)
    assert target.inputs == (6,)
    assert target.outputs == (5,)
    stacked = {dotted(target.path): target for target in definition.targets}["decoder.layers.output"]
    assert (stacked.stack, stacked.inputs, stacked.outputs) == ((2,), (4, 8), (32,))
    factors = params["lora"]["decoder"]["layers"]["output"]
    assert (factors["a"].shape, factors["b"].shape) == ((2, 4, 8, 4), (2, 4, 32))


def test_training_starts_at_the_base_exactly():
    model, plain = define(configure(), packed.VOCABULARY), define(packed.configure(), packed.VOCABULARY)
    params, expected = jax.jit(lambda key: (model.init(key), plain.init(key)))(jax.random.key(7))
    base = {name: tree for name, tree in params.items() if name != "lora"}
    assert jax.tree.all(jax.tree.map(np.array_equal, base, expected))
    assert all(np.any(leaf) == (path[-1].key == "a") for path, leaf in jax.tree.leaves_with_path(params["lora"])), (
        "A is random, B is zero"
    )
    assert jax.tree.structure(params) == jax.tree.structure(model.shapes())
    np.testing.assert_array_equal(hidden(model, params, jax.random.key(1)), hidden(plain, base))


def test_merged_is_unmerged_to_rounding(params, definition):
    expected = hidden(definition, params)
    merged = lora.merge(params, configure().model.lora)
    plain = define(packed.configure(), packed.VOCABULARY)
    assert jax.tree.structure(merged) == jax.tree.structure(plain.shapes())
    assert np.abs(hidden(plain, {name: params[name] for name in merged}) - expected).max() > 0.1
    for model in (plain, definition):
        np.testing.assert_allclose(hidden(model, merged), expected, atol=2e-4 * np.abs(expected).max())


def test_a_base_held_in_fewer_bits_is_merged_in_float32(params):
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    kernel = lora.merge({**halved, "lora": params["lora"]}, CONFIG)["decoder"]["layers"]["gate"]["kernel"]
    assert kernel.dtype == jnp.float32
    factors = params["lora"]["decoder"]["layers"]["gate"]
    update = 1.5 * np.einsum("lir,lro->lio", factors["a"], factors["b"])
    base = np.asarray(halved["decoder"]["layers"]["gate"]["kernel"], np.float32)
    np.testing.assert_allclose(kernel, base + update, rtol=1e-5, atol=1e-5)


def test_dropout_is_on_the_factors_input_and_another_in_every_layer(params, definition):
    same = hidden(definition, params, jax.random.key(0))
    np.testing.assert_array_equal(hidden(definition, params, jax.random.key(0)), same)
    assert np.abs(hidden(definition, params, jax.random.key(1)) - same).max() > 1e-3
    assert np.abs(hidden(definition, params) - same).max() > 1e-3
    bound = definition.bind(params, jax.random.key(0)).decoder.layers
    keys = np.concatenate([jax.random.key_data(getattr(bound, name).key[...]) for name in ("query", "down")])
    assert len({tuple(key) for key in keys}) == 4

    half = LoraConfig(rank=4, alpha=4.0, dropout=0.5)
    base = linear(4, 4, (None, None), jnp.float32, nnx.Rngs(0), bias=False)
    identity = {"a": jnp.eye(4), "b": jnp.eye(4)}
    x = jnp.ones((1000, 4))
    update = lora.Adapted(base, identity, half, jax.random.key(0))(x) - base(x)
    values, counts = np.unique(np.round(update, 3), return_counts=True)
    np.testing.assert_array_equal(values, [0.0, 2.0])
    assert counts[0] / 4000 == pytest.approx(0.5, abs=0.05)


def test_factors_of_one_linear_do_not_depend_on_the_others():
    one, all_ = (
        define(configure(**{"model.lora.targets": targets}), packed.VOCABULARY)
        for targets in ("decoder.layers.up", "decoder.layers.*")
    )
    found, expected = (lora.init(model.targets, 4, jax.random.key(0)) for model in (one, all_))
    assert np.array_equal(found["decoder"]["layers"]["up"]["a"], expected["decoder"]["layers"]["up"]["a"])
    a = np.asarray(expected["decoder"]["layers"]["up"]["a"])
    assert np.abs(a).max() <= 32**-0.5
    assert a.std() == pytest.approx(32**-0.5 / 3**0.5, rel=0.1)
    assert not np.array_equal(a, expected["decoder"]["layers"]["gate"]["a"])


@pytest.mark.parametrize("split", [(1, 4, 1, 1), (1, 4, 1, 2), (2, 2, 1, 2)], ids=str)
def test_no_factor_is_whole_on_every_device(split, definition):
    mesh = make_mesh(MeshConfig(*split), jax.devices()[: int(np.prod(split))])
    for path, place in jax.tree.leaves_with_path(definition.shardings(mesh, RULES)["lora"]):
        assert "fsdp" in jax.tree.leaves(tuple(place.spec)), (path, place.spec)
    layers = definition.shardings(mesh)["lora"]["decoder"]["layers"]
    assert layers["query"]["a"].spec == PartitionSpec(None, "fsdp", None)
    assert layers["query"]["b"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert layers["output"]["b"].spec == PartitionSpec(None, None, "fsdp")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_digest_is_of_the_numbers_wherever_they_lie(dtype):
    chance = np.random.default_rng(0)
    array = jnp.asarray(chance.normal(size=(8, 6)), dtype)
    found = digest({"kernel": {"a": array}})
    mesh = make_mesh(MeshConfig(1, 4, 1, 2))
    spread = jax.device_put(array, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    assert digest({"kernel": {"a": spread}}) == found
    others = [
        {"kernel": {"b": array}},
        {"kernel": {"a": array.reshape(6, 8)}},
        {"kernel": {"a": array[::-1]}},
        {"kernel": {"a": array.at[3, 2].add(0.01)}},
        {"kernel": {"a": array.at[0, 0].set(array[0, 1]).at[0, 1].set(array[0, 0])}},
        {"kernel": {"a": array, "b": array}},
        {"kernel": {"a": array.astype("float16")}},
    ]
    assert len({found, *map(digest, others)}) == 1 + len(others)
