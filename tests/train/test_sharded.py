"""The same numbers on every mesh and for every way to split a batch; and nothing large is replicated unnoticed.

Plain SGD stands in for AdamW, which turns the rounding of a gradient near zero into a step of full size: after it, the
parameters and the momentum show every gradient as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from matrices import matrix
from packed import loss_sums
from tiny_config import random_params

from unihetero_jax.config import AdapterConfig, Config, MeshConfig, defaults, resolve
from unihetero_jax.config import loading as config_file
from unihetero_jax.data.pipeline import batches, open_mixture
from unihetero_jax.errors import UsageError
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import AXES, Rules, check_sharded, make_mesh, place, sharding
from unihetero_jax.parallel.processes import place_rows
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.train.state import initial_state, state_shardings
from unihetero_jax.train.step import compile_step, make_step
from unihetero_jax.train.unified import UnifiedLearner, check_model_mesh

OPTIMIZER = optax.sgd(0.1, momentum=0.9)
VOCABULARY = defaults().data.smart_watch.vocabulary_size
ROWS = 16

# (slice, fsdp, context, tensor)
SPLITS = [(1, 8, 1, 1), (2, 4, 1, 1), (1, 1, 2, 1), (1, 1, 4, 1), (1, 1, 1, 2), (2, 2, 1, 2), (1, 2, 2, 2)]
FAST_SPLITS = [(1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2)]

TEXT = ("losses.semantic.weight=0", "losses.pixel.weight=0")
SEMANTIC = ("losses.text.weight=0.5", "losses.pixel.weight=0")
PIXEL = ("losses.semantic.weight=0",)
INPUT, OUTPUT = ("losses.semantic.target=input_embedding",), ("losses.semantic.target=encoder_output",)
EMA = ("losses.semantic.target_gradient=ema", "losses.semantic.ema_decay=0.5")
THROUGH = ("losses.semantic.target_gradient=through",)
EVERYTHING = (
    "losses.text.chunk=32",
    "losses.text.z_loss=1e-3",
    "losses.pixel.gradient_to_decoder=0.5",
    "train.accumulation=2",
    *EMA,
)

# Every value of every option at least once, and every two of target, distance and gradient that share a variant differ.
VARIANTS = {
    "text": TEXT,
    "text, in chunks, with z-loss": (*TEXT, "losses.text.chunk=16", "losses.text.z_loss=1e-2"),
    "embedding, cosine, stop": (*SEMANTIC, *INPUT),
    "embedding, mse, ema": (*SEMANTIC, *INPUT, *EMA, "losses.semantic.loss=mse"),
    "embedding, smooth L1, through": (*SEMANTIC, *INPUT, *THROUGH, "losses.semantic.loss=smooth_l1"),
    "output, cosine, ema": (*SEMANTIC, *OUTPUT, *EMA, "model.understanding_adapter.normalize_input=true"),
    "output, mse, through": (*SEMANTIC, *OUTPUT, *THROUGH, "losses.semantic.loss=mse"),
    "output, smooth L1, stop": (*SEMANTIC, *OUTPUT, "losses.semantic.loss=smooth_l1"),
    "pixel, detached": PIXEL,
    "pixel, half": (*PIXEL, "losses.pixel.gradient_to_decoder=0.5"),
    "pixel, whole": (*PIXEL, "losses.pixel.gradient_to_decoder=1"),
    "untied, recomputed": ("model.decoder.tie_embeddings=false", "model.decoder.remat=full"),
}
# Beside EVERYTHING, which has the text in chunks, cosines, a moving average and half of the pixels' gradient.
FAST_VARIANTS = ("embedding, smooth L1, through", "pixel, whole", "untied, recomputed")


def configure(*overrides: str) -> Config:
    texts = (f"train.batch_size={ROWS}", *overrides)
    return config_file.load(runs.TINY, [tuple(text.split("=", 1)) for text in texts])


@pytest.fixture(scope="module")
def batch(dataset):
    """Real rows, as one process makes them all."""
    config = configure()
    samples = open_mixture(config, dataset, "train", config.train.seed)
    stream = batches(config, samples, Tokenizer.load(dataset / "tokenizer.model"), list(range(ROWS)), ROWS)
    made, _ = next(stream)
    stream.close()
    assert made["visual_weight"].any()
    assert (made["segment"] > 1).any()
    return made


def mesh_of(split):
    return make_mesh(MeshConfig(*split), jax.devices()[: int(np.prod(split))])


def steps(config: Config, split, batch, count: int = 2):
    """(metrics of each step, parameters, momentum and moving average as NumPy) from the seed's start."""
    mesh, learner = mesh_of(split), UnifiedLearner(config, define(config, VOCABULARY))
    _, places = state_shardings(learner, OPTIMIZER, mesh)
    state = jax.tree.map(place, start(config), places)
    where = sharding(mesh, "batch")
    arrays = {name: place_rows(array, list(range(ROWS)), ROWS, where) for name, array in batch.items()}
    compiled = compile_step(make_step(learner, OPTIMIZER, mesh), places, mesh).lower(state, arrays).compile()
    found = []
    for _ in range(count):
        state, metrics = compiled(state, arrays)
        found.append({name: float(value) for name, value in metrics.items()})
    return found, jax.tree.map(np.asarray, {name: state[name] for name in ("params", "opt_state", "ema")})


@functools.cache
def start(config: Config):
    """A state with random parameters."""
    learner = UnifiedLearner(config, define(config, VOCABULARY))
    params = random_params(learner.model.shapes())
    state = {
        "params": params,
        "opt_state": OPTIMIZER.init(params),
        "ema": learner.averaged(params),
        "step": np.int32(0),
        "rng": jax.random.key_data(jax.random.key(5)),
    }
    return jax.tree.map(np.asarray, state)


_ALONE: dict[Config, tuple] = {}


def alone(config: Config, batch):
    """What one device makes of it."""
    if config not in _ALONE:
        _ALONE[config] = steps(config, (1, 1, 1, 1), batch)
    return _ALONE[config]


def assert_close(found, expected):
    """Equal but for rounding: a sum of n float32 in another order differs by some √n · 6e-8 of its largest terms."""
    for row, wanted in zip(found[0], expected[0], strict=True):
        assert row.keys() == wanted.keys()
        for name in row:
            assert row[name] == pytest.approx(wanted[name], rel=2e-5, abs=1e-7), name
    for (path, leaf), other in zip(jax.tree.leaves_with_path(expected[1]), jax.tree.leaves(found[1]), strict=True):
        error = np.max(np.abs(leaf - other), initial=0.0)
        assert error <= 2e-5 * np.max(np.abs(leaf), initial=0.0) + 1e-8, jax.tree_util.keystr(path)


@pytest.mark.parametrize("split", matrix([(split,) for split in SPLITS], fast=FAST_SPLITS), ids=str)
def test_every_split_gives_the_numbers_of_one_device(split, batch):
    config = configure(*EVERYTHING)
    check_model_mesh(mesh_of(split), config)
    assert_close(steps(config, split, batch), alone(config, batch))


@pytest.mark.parametrize(
    ("name", "split"),
    matrix(((name, SPLITS[-1 - number % 7]) for number, name in enumerate(VARIANTS)), fast=FAST_VARIANTS),
    ids=str,
)
def test_every_objective_is_the_same_when_split(name, split, batch):
    config = configure(*VARIANTS[name])
    found = steps(config, split, batch)
    assert_close(found, alone(config, batch))
    assert set(config.losses) < found[0][0].keys()


def test_variants_differ(batch):
    """A tolerance that let two of them pass for each other would prove nothing."""
    pairs = [(EVERYTHING, VARIANTS["untied, recomputed"]), (VARIANTS["pixel, half"], VARIANTS["pixel, whole"])]
    for left, right in pairs:
        with pytest.raises(AssertionError):
            assert_close(alone(configure(*left), batch), alone(configure(*right), batch))


def test_the_start_is_the_same_on_every_mesh():
    config = configure(*EMA)
    learner = UnifiedLearner(config, define(config, VOCABULARY))
    made = []
    for split in (1, 1, 1, 1), SPLITS[-1]:
        _, places = state_shardings(learner, OPTIMIZER, mesh_of(split))
        state = jax.jit(lambda: initial_state(learner, OPTIMIZER), out_shardings=places)()
        made.append(jax.tree.map(np.asarray, state))
    for other in made[1:]:
        assert jax.tree.all(jax.tree.map(np.array_equal, made[0], other))
    assert jax.tree.structure(made[0]) == jax.tree.structure(start(config))


@pytest.mark.parametrize("accumulation", matrix([2, 4], fast=[4]))
def test_accumulation_is_the_big_batch_however_the_weights_fall(accumulation, batch):
    # Rows r with r % accumulation alike make one pass: the passes get 1 learned token, many, and for 4 none at all.
    uneven = {name: array.copy() for name, array in batch.items()}
    for row in range(ROWS):
        if row % 2 == 0:
            uneven["text_weight"][row] = 0.0
            uneven["visual_weight"][row] = 0.0
    uneven["text_weight"][4, np.flatnonzero(batch["text_weight"][4])[0]] = 1.0
    still = ("model.decoder.dropout=0", "losses.pixel.gradient_to_decoder=1")
    whole = steps(configure(*still), (1, 1, 1, 1), uneven)
    assert_close(steps(configure(*still, f"train.accumulation={accumulation}"), (1, 1, 1, 1), uneven), whole)


def pixel_gradients(batch, factor: float):
    config = configure("model.decoder.dropout=0", f"losses.pixel.gradient_to_decoder={factor}")
    model = define(config, VOCABULARY)

    def loss(params):
        return loss_sums(config, model.bind(params), batch)[0]["pixel"]

    return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(start(config)["params"]))


def test_a_detached_pixel_head_sends_nothing_back_and_half_of_it_half(batch):
    none, half, whole = (pixel_gradients(batch, factor) for factor in (0, 0.5, 1))
    for name in ("decoder", "understanding_adapter", "understanding_tower"):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(none[name])), name
        for left, right in zip(jax.tree.leaves(half[name]), jax.tree.leaves(whole[name]), strict=True):
            assert np.abs(right).max() > 0
            np.testing.assert_allclose(left, 0.5 * right, rtol=1e-5, atol=1e-6 * np.abs(right).max())
    for gradients in (none, half):
        for left, right in zip(
            jax.tree.leaves(gradients["pixel_head"]), jax.tree.leaves(whole["pixel_head"]), strict=True
        ):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6 * np.abs(right).max())


def semantic_gradients(batch, kind: str):
    config = configure("model.decoder.dropout=0", *SEMANTIC, f"losses.semantic.target_gradient={kind}")
    model = define(config, VOCABULARY)
    params = start(configure("model.decoder.dropout=0", *SEMANTIC))["params"]
    teacher = model.bind(params).encode_targets(jax.tree.map(jnp.asarray, batch)) if kind == "ema" else None

    def loss(params):
        return loss_sums(config, model.bind(params), batch, teacher=teacher)[0]["semantic"]

    return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))


def test_only_through_learns_from_its_target(batch):
    stop, ema, through = (semantic_gradients(batch, kind) for kind in ("stop", "ema", "through"))
    kernels = [found["understanding_adapter"]["output"]["kernel"] for found in (stop, ema, through)]
    scale = np.abs(kernels[0]).max()
    np.testing.assert_allclose(kernels[1], kernels[0], atol=1e-5 * scale)
    assert np.abs(kernels[2] - kernels[0]).max() > 1e-2 * scale


def quickstart() -> Config:
    return config_file.load(runs.ROOT / "configs" / "quickstart.py", [])


@pytest.mark.parametrize("split", [(1, 8, 1, 1), (2, 4, 1, 1), (1, 4, 1, 2), (1, 2, 2, 2), (1, 1, 1, 2)], ids=str)
def test_the_quickstart_is_split_on_every_mesh(split):
    config, mesh = quickstart(), mesh_of(split)
    model = define(config, VOCABULARY)
    shapes, places = model.shapes(), model.shardings(mesh)
    check_model_mesh(mesh, config)
    assert check_sharded(shapes, places) <= 0.02
    whole = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    here = sum(
        np.prod(where.shard_shape(leaf.shape))
        for leaf, where in zip(jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True)
    )
    parts = split[1] * split[3]
    assert here <= whole * (1 / parts + 0.03)


def test_a_width_that_the_mesh_does_not_divide_is_refused():
    mesh = mesh_of((1, 8, 1, 1))
    config = configure("model.decoder.width=36", "model.decoder.heads=2", "model.understanding_tower.width=36")
    with pytest.raises(
        UsageError, match=r"mesh.fsdp=8 does not divide config.model.decoder.width=36; .*slice=2 --config.mesh.fsdp=4 "
    ):
        check_model_mesh(mesh, config)
    model = define(config, VOCABULARY)
    with pytest.raises(UsageError, match=r"replicated .* decoder\.embedding"):
        check_sharded(model.shapes(), model.shardings(mesh))


@pytest.mark.parametrize("split", [(1, 8, 1, 1), (1, 4, 1, 2)], ids=str)
def test_rules_that_replicate_are_refused(split):
    mesh, model = mesh_of(split), define(configure(), VOCABULARY)
    assert check_sharded(model.shapes(), model.shardings(mesh)) <= 0.02
    forgetful = dataclasses.replace(Rules(), embed=None)
    with pytest.raises(UsageError, match=r"parameter bytes would be replicated .*decoder\.layers"):
        check_sharded(model.shapes(), model.shardings(mesh, forgetful))


def test_one_device_replicates_nothing():
    model = define(configure(), VOCABULARY)
    assert check_sharded(model.shapes(), model.shardings(mesh_of((1, 1, 1, 1)))) == 0


def test_a_linear_adapter_is_split_too():
    config = quickstart()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, understanding_adapter=AdapterConfig(kind="linear")),
        data=config.data,
    )
    model = define(config, VOCABULARY)
    assert 0 < check_sharded(model.shapes(), model.shardings(mesh_of((1, 8, 1, 1)))) <= 0.02


def test_rules_reject_what_cannot_be():
    with pytest.raises(ValueError, match="unknown logical axis 'depth'"):
        Rules().spec(("depth",))
    with pytest.raises(ValueError, match="'fsdp' on two dimensions"):
        Rules().spec(("embed", "features"))


def test_a_mesh_that_does_not_fit_the_devices_names_the_sizes():
    with pytest.raises(UsageError, match="does not fit 8 devices"):
        make_mesh(MeshConfig(fsdp=3))


@pytest.mark.parametrize(
    ("devices", "wanted", "expected"),
    [
        # Widths of 192 over five hosts: parameters whole on each of them; 60 rows divide.
        (5, (1, 5, 1, 1), (5, 1, 1, 1)),
        (6, (1, 3, 1, 2), (1, 3, 1, 2)),
        # Six heads are not split over four.
        (8, (1, 2, 1, 4), (1, 4, 1, 2)),
    ],
)
def test_a_mesh_that_divides_nothing_is_answered_with_one_that_works(devices, wanted, expected):
    values = defaults()
    values.train.batch_size = 60 if devices != 8 else 64
    config = resolve(values)
    mesh = SimpleNamespace(shape=dict(zip(AXES, wanted, strict=True)), size=devices)
    if wanted == expected:
        check_model_mesh(mesh, config)
        return
    given = " ".join(f"--config.mesh.{axis}={size}" for axis, size in zip(AXES, expected, strict=True))
    with pytest.raises(UsageError, match=re.escape(f"of {devices} devices that works: {given}")):
        check_model_mesh(mesh, config)
    check_model_mesh(SimpleNamespace(shape=dict(zip(AXES, expected, strict=True)), size=devices), config)


def test_a_batch_that_the_mesh_does_not_divide_names_one_that_it_does():
    values = defaults()
    values.train.batch_size = 12
    with pytest.raises(UsageError, match="the nearest batch size that does is 16"):
        check_model_mesh(mesh_of((1, 8, 1, 1)), resolve(values))
