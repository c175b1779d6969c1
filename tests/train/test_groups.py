"""Training by groups: factors on rates, and frozen parameters that cost nothing but their forward pass."""

from __future__ import annotations

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import packed
import pytest
import runs
from tiny_config import tiny_config

from unihetero_jax.config import Config, MeshConfig, OptimizerConfig
from unihetero_jax.config import loading as config_file
from unihetero_jax.model import groups
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.run import train_model as main
from unihetero_jax.run.load_model import load_trained
from unihetero_jax.towers.patch.network import PatchTower
from unihetero_jax.train.optimizers.adamw import AdamWConfig
from unihetero_jax.train.optimizers.base import make_optimizer
from unihetero_jax.train.state import initial_state, state_shardings
from unihetero_jax.train.unified import UnifiedLearner

FROZEN = ("decoder", "towers")


def configure(*frozen: str, **changes) -> Config:
    return packed.configure(**{**{f"optimizer.groups.{name}.frozen": True for name in frozen}, **changes})


def moved(config: Config, before, after):
    """How far each trained parameter moved."""
    return jax.tree.map(
        lambda new, old: np.asarray(new - old, np.float64),
        *(groups.split(config, state["params"])[0] for state in (after, before)),
    )


def norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def test_only_what_is_trained_moves_is_clipped_and_has_the_same_gradient():
    some = configure(*FROZEN, **{"train.accumulation": 2})
    clipped = optax.chain(optax.clip_by_global_norm(0.5), packed.DESCENT)
    before, after, metrics = packed.one_step(some, optimizer=clipped)
    _, whole, _ = packed.one_step(configure())
    for old, new in zip(*(jax.tree.leaves(groups.split(some, x["params"])[1]) for x in (before, after)), strict=True):
        assert old.tobytes() == new.tobytes()
    step, full = moved(some, before, after), moved(some, before, whole)
    assert set(step) == {"understanding_adapter", "decoder", "semantic_head", "pixel_head"}
    assert set(step["decoder"]) == {"embedding"}
    assert metrics["grad_norm"] == pytest.approx(norm(full), rel=1e-4)
    assert norm(step) == pytest.approx(0.5, rel=1e-4)
    for (path, left), right in zip(jax.tree.leaves_with_path(step), jax.tree.leaves(full), strict=True):
        assert np.abs(right).max() > 0, path
        # Parameters near 1 hold a small step to about four digits.
        np.testing.assert_allclose(left * metrics["grad_norm"] / 0.5, right, rtol=1e-3, atol=2e-4 * np.abs(right).max())


def test_frozen_parameters_have_no_optimiser_state():
    config = configure(*FROZEN, **{"optimizer.frozen_dtype": "bfloat16"})
    learner = UnifiedLearner(config, define(config, packed.VOCABULARY))
    shapes = jax.eval_shape(lambda: initial_state(learner, learner.optimizer()))
    trained, frozen = groups.split(config, shapes["params"])
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes["opt_state"])]
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert 0 < count < sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert sum(size for size in sizes if size > 1) == 2 * count
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}


def flops(config: Config) -> float:
    step, _, _ = packed.compiled_step(config, packed.DESCENT)
    return step.cost_analysis()["flops"]


def test_a_frozen_tower_adds_its_forward_flops_only(monkeypatch):
    # Large beside what is counted elementwise, and with a detail kernel of 192 × 256.
    options = {
        "model.understanding_tower.width": 256,
        "model.understanding_adapter.kind": "linear",
        "model.decoder.layers": 1,
    }
    options |= {"losses.semantic.weight": 0, "losses.pixel.weight": 0}
    trained, frozen = flops(configure(**options)), flops(configure("towers", **options))
    config = configure("towers", **options)
    model = define(config, packed.VOCABULARY)
    batch = packed.random_batch(config)

    def see(params, images):
        return model.bind(params).understanding_tower(images)

    forward = jax.jit(see).lower(model.shapes(), batch["images"]).compile().cost_analysis()["flops"]

    def free(tower: PatchTower, images: jax.Array, mesh: object = None) -> jax.Array:
        rows, count, side = *images.shape[:2], tower.config.patch_size
        return (
            images.reshape(rows, count, -1, side * side * 3)
            .astype(jnp.float32)
            .repeat(2, -1)[..., : tower.config.width]
        )

    monkeypatch.setattr(PatchTower, "__call__", free)
    without = flops(config)
    products = 2 * batch["images"].size * 256
    assert forward >= products
    assert frozen - without == pytest.approx(forward, rel=0.02)
    # The weight gradient of the detail kernel is one more product of that size; its input needs none.
    assert trained - frozen >= products


def test_split_over_devices_the_numbers_are_the_same():
    options = {
        "optimizer.frozen_dtype": "bfloat16",
        "losses.semantic.target_gradient": "ema",
        "losses.semantic.ema_decay": 0.5,
    }
    config = configure(*FROZEN, **options)
    before, alone, expected = packed.one_step(config)
    _, found, metrics = packed.one_step(config, (1, 2, 2, 2))
    assert set(alone["ema"]) == {"understanding_adapter"}
    for name in metrics:
        assert metrics[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name
    for left, right in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(alone["params"]), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(
            left.astype(np.float32), right.astype(np.float32), atol=2e-5 * np.abs(right.astype(np.float32)).max()
        )
    assert norm(moved(config, before, alone)) > 0


def test_frozen_parameters_are_split_like_the_others():
    config = configure(*FROZEN)
    mesh = make_mesh(MeshConfig(1, 4, 1, 2))
    learners = [UnifiedLearner(some, define(some, packed.VOCABULARY)) for some in (config, configure())]
    places = [state_shardings(learner, packed.DESCENT, mesh)[1]["params"] for learner in learners]
    assert places[0] == places[1]


def updates(config: OptimizerConfig, params):
    optimizer = make_optimizer(config, 10, functools.partial(groups.settings, config))
    found, _ = optimizer.update(jax.tree.map(lambda leaf: 0.3 * leaf + 0.1, params), optimizer.init(params), params)
    return found


@pytest.fixture
def params():
    chance = np.random.default_rng(1)

    def draw(*shape: int):
        return jnp.asarray(chance.normal(size=shape), jnp.float32)

    return {
        "understanding_tower": {"detail": draw(3, 4), "bias": draw(4)},
        "decoder": {"layers": {"norm": {"scale": draw(2, 4)}, "up": {"kernel": draw(2, 4, 4)}}},
    }


def test_the_first_moment_may_be_held_in_16_bits(params):
    config = AdamWConfig(first_moment_dtype="bfloat16")
    optimizer = make_optimizer(config, 10, functools.partial(groups.settings, config))
    update, state = optimizer.update(params, optimizer.init(params), params)
    types = {leaf.dtype.name for leaf in jax.tree.leaves(optax.tree.get(state, "mu"))}
    assert types == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(optax.tree.get(state, "nu"))} == {"float32"}
    # After one step both moments are the gradient's, so that only the rounding of the first is left.
    plain = make_optimizer(AdamWConfig(), 10)
    expected, _ = plain.update(params, plain.init(params), params)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=2**-8), update, expected)


def test_without_factors_it_is_optax_own_adamw(params):
    config = AdamWConfig(weight_decay=0.1, clip_norm=0.0)
    reference = optax.adamw(
        config.learning_rate / config.warmup_steps,
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=0.1,
        mask={
            "understanding_tower": {"detail": True, "bias": False},
            "decoder": {"layers": {"norm": False, "up": True}},
        },
    )
    expected, _ = reference.update(jax.tree.map(lambda leaf: 0.3 * leaf + 0.1, params), reference.init(params), params)
    for left, right in zip(jax.tree.leaves(updates(config, params)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_another_optimizer_has_the_same_decay_and_schedule(params):
    config = tiny_config(**{"optimizer.kind": "lion", "optimizer.weight_decay": 0.1, "optimizer.clip_norm": 0.0})
    settings = config.optimizer
    assert settings.learning_rate == 3e-4, "its own default"
    reference = optax.lion(
        settings.learning_rate / settings.warmup_steps,
        weight_decay=0.1,
        mask={
            "understanding_tower": {"detail": True, "bias": False},
            "decoder": {"layers": {"norm": False, "up": True}},
        },
    )
    expected, _ = reference.update(jax.tree.map(lambda leaf: 0.3 * leaf + 0.1, params), reference.init(params), params)
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-5), updates(settings, params), expected
    )


def test_a_factor_scales_its_group_alone(params):
    values = {"optimizer.weight_decay": 0.1, "optimizer.clip_norm": 0.0}
    plain = updates(tiny_config(**values).optimizer, params)
    slow = updates(tiny_config(**values, **{"optimizer.groups.towers.learning_rate_factor": 0.25}).optimizer, params)
    assert jax.tree.all(
        jax.tree.map(
            lambda left, right: np.array_equal(left, right / 4),
            slow["understanding_tower"],
            plain["understanding_tower"],
        )
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, slow["decoder"], plain["decoder"]))
    still = updates(tiny_config(**values, **{"optimizer.groups.decoder.weight_decay_factor": 0.0}).optimizer, params)
    none = updates(tiny_config(**{**values, "optimizer.weight_decay": 0.0}).optimizer, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, still["understanding_tower"], plain["understanding_tower"]))
    assert jax.tree.all(jax.tree.map(np.array_equal, still["decoder"], none["decoder"]))
    assert not np.array_equal(plain["decoder"]["layers"]["up"]["kernel"], none["decoder"]["layers"]["up"]["kernel"])


def test_a_run_with_frozen_groups_goes_on_bit_for_bit(dataset, tmp_path):
    texts = (
        f"data.root={dataset}",
        "logging.tensorboard=false",
        "train.steps=4",
        "checkpoint.every_steps=2",
        "optimizer.groups.towers.frozen=true",
        "optimizer.groups.decoder.frozen=true",
        "optimizer.groups.adapters.learning_rate_factor=0.5",
        "optimizer.frozen_dtype=bfloat16",
        "losses.semantic.target_gradient=ema",
    )
    config = config_file.load(runs.TINY, [tuple(text.split("=", 1)) for text in texts])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main.train_model(config, whole) == 0
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "4")
    assert main.train_model(config, broken) == 0
    runs.assert_identical(broken, whole)

    stored = runs.arrays(whole, 4, ["state"])
    assert stored["state['params']['understanding_tower']['detail']"].dtype == jnp.bfloat16
    assert not [name for name in stored if "opt_state" in name and ("tower" in name or "layers" in name)]
    assert {name.split("'")[3] for name in stored if name.startswith("state['ema']")} == {"understanding_adapter"}
    trained = load_trained(whole)
    first = load_trained(whole, 2)
    assert np.array_equal(
        trained.params["understanding_tower"]["detail"], first.params["understanding_tower"]["detail"]
    )
    assert not np.array_equal(
        trained.params["understanding_adapter"]["output"]["kernel"],
        first.params["understanding_adapter"]["output"]["kernel"],
    )
    assert trained.params["understanding_tower"]["detail"].dtype == jnp.bfloat16
