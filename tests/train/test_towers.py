"""Towers by the ordinary loop: the same numbers on every mesh, resumed bit for bit, and what is left of a run."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from flax import nnx
from matrices import matrix
from PIL import Image

from unihetero_jax.config import (
    CheckpointConfig,
    LoggingConfig,
    MeshConfig,
    SmartWatchConfig,
    TrainConfig,
)
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.mesh import make_mesh, place, sharding
from unihetero_jax.parallel.processes import place_rows
from unihetero_jax.run import evaluate_tower as evaluate
from unihetero_jax.run import train_tower as tower_main
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.towers.common.autoencoder.config import KLConfig, KLLossConfig, VQConfig, VQLossConfig
from unihetero_jax.towers.common.stored import load_tower
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.towers.siglip.config import SigLIPSizes
from unihetero_jax.towers.siglip.network import SigLIP
from unihetero_jax.towers.vq16.network import VQ16
from unihetero_jax.train.optimizers.adamw import AdamWConfig
from unihetero_jax.train.state import initial_state, state_shardings
from unihetero_jax.train.step import compile_step, make_step
from unihetero_jax.train.towers.base import TowerDataConfig, TowerEvaluateConfig
from unihetero_jax.train.towers.common import batches, make_learner
from unihetero_jax.train.towers.kl16.config import KL16RunConfig
from unihetero_jax.train.towers.siglip.config import ContrastiveConfig, SigLIPRunConfig, TextTowerConfig
from unihetero_jax.train.towers.vq16.config import VQ16RunConfig

# The tokenizer of the dataset has no more pieces.
ROWS, VOCABULARY = 8, 1024
DESCENT = optax.sgd(1.0)
SIZES = {
    "image_size": 16,
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "groups": 2,
    "encoder_attention": (),
    "decoder_attention": (),
}
KINDS = {
    "vq16": VQ16RunConfig(tower=VQConfig(**SIZES, hidden=8, codes=32)),
    # With everything that the published model does without.
    "vq16-tiny": VQ16RunConfig(
        tower=VQConfig(**{**SIZES, "multipliers": (2,)}, stem=4, canvas=1.0, positions=True, hidden=8, codes=32),
        losses=VQLossConfig(detail=1.0, unused=1.0, continuous=0.5),
    ),
    "kl16": KL16RunConfig(tower=KLConfig(**SIZES, latent=4), losses=KLLossConfig(kl=1e-3)),
    "siglip": SigLIPRunConfig(
        tower=SigLIPSizes(width=16, layers=1, heads=2, mlp_width=32, patch_size=8, image_size=16),
        text=TextTowerConfig(width=16, layers=1, heads=2, mlp_width=32),
        losses=ContrastiveConfig(width=16),
    ),
}
KINDS["captioning"] = dataclasses.replace(
    KINDS["siglip"],
    split_patches=True,
    text=TextTowerConfig(width=16, layers=1, caption_layers=1, heads=2, mlp_width=32),
    losses=ContrastiveConfig(width=16, captioning=0.5),
)


def configure(kind: str, **train):
    return dataclasses.replace(
        KINDS[kind],
        data=TowerDataConfig(
            image_size=32, seq_len=48, smart_watch=SmartWatchConfig(num_images=200, test_images=20), threads=1
        ),
        optimizer=AdamWConfig(learning_rate=1e-2, warmup_steps=1, schedule="constant"),
        train=TrainConfig(**{"steps": 4, "batch_size": ROWS, **train}),
        checkpoint=CheckpointConfig(every_steps=2),
        logging=LoggingConfig(tensorboard=False),
        evaluate=TowerEvaluateConfig(images=20, candidates=10, pictures=3, batch_size=8),
    )


@pytest.fixture(scope="module")
def batch(dataset):
    """Real rows, the third without its image, the fourth without its caption."""
    tokenizer = Tokenizer.load(dataset / "tokenizer.model")
    stream = batches(configure("siglip"), dataset, tokenizer, list(range(ROWS)))
    made, _ = next(stream)
    stream.close()
    assert (made["role"][:, 0] > 0).all()
    made["role"][2] = 0
    made["images"][2] = 0
    made["text_weight"][3] = 0
    return made


def one_step(config, batch, split=(1, 1, 1, 1)):
    """(metrics, parameters) of one step of plain descent from the seed's start."""
    mesh = make_mesh(MeshConfig(*split), jax.devices()[: int(np.prod(split))])
    learner = make_learner(config, VOCABULARY)
    learner.check(mesh)
    _, places = state_shardings(learner, DESCENT, mesh)
    state = jax.tree.map(place, start(config), places)
    where = sharding(mesh, "batch")
    arrays = {name: place_rows(array, list(range(len(array))), len(array), where) for name, array in batch.items()}
    compiled = compile_step(make_step(learner, DESCENT, mesh), places, mesh).lower(state, arrays).compile()
    state, metrics = compiled(state, arrays)
    return jax.tree.map(float, metrics), jax.tree.map(np.asarray, state["params"])


@functools.cache
def start(config):
    """A state with random parameters; drawn by NumPy, because compiling the true start takes longer than the test.

    The bias is not −10, with which a wrong pair too many would hardly be noticed.
    """
    chance = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: initial_state(make_learner(config, VOCABULARY), DESCENT))

    def draw(path, leaf):
        given = {"log_scale": np.log(10), "bias": -1.0 if leaf.ndim == 0 else 0.0}
        mean = given.get(path[-1].key, float("scale" in jax.tree_util.keystr(path)))
        return np.asarray(mean + (leaf.ndim > 0) * chance.normal(0.0, 0.2, leaf.shape), leaf.dtype)

    params = jax.tree.map_with_path(draw, shapes["params"])
    state = {"params": params, "opt_state": DESCENT.init(params), "ema": {}, "step": np.int32(0)}
    return jax.tree.map(np.asarray, {**state, "rng": jax.random.key_data(jax.random.key(5))})


@functools.cache
def params_of(kind):
    return jax.tree.map(jnp.asarray, start(configure(kind))["params"])


_ALONE: dict = {}


def alone(config, batch):
    """What one device makes of it."""
    if config not in _ALONE:
        _ALONE[config] = one_step(config, batch)
    return _ALONE[config]


def assert_same(found, expected):
    for name, value in expected[0].items():
        assert found[0][name] == pytest.approx(value, rel=2e-5, abs=1e-6), name
    for (path, left), right in zip(jax.tree.leaves_with_path(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5 * max(np.abs(right).max(), 1), err_msg=str(path))


@pytest.mark.parametrize("kind", matrix(KINDS, fast=["vq16", "kl16", "captioning"]))
def test_split_over_devices_the_numbers_are_the_same(kind, batch):
    config = configure(kind)
    expected = alone(config, batch)
    assert set(make_learner(config, VOCABULARY).losses) < expected[0].keys()
    assert all(np.isfinite(value) for value in expected[0].values())
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), expected[1], start(config)["params"])
    assert np.mean([step > 0 for step in jax.tree.leaves(moved)]) > 0.9
    assert_same(one_step(config, batch, (1, 8, 1, 1)), expected)


def test_rows_without_an_image_or_a_caption_count_for_nothing(batch):
    batch = {**batch, "segment": batch["segment"].copy()}
    batch["segment"][5, -1] = 2  # a second sample, without an image
    for kind, missing in (("vq16", [2]), ("captioning", [2, 3, 5])):
        other = {name: array.copy() for name, array in batch.items()}
        chance = np.random.default_rng(0)
        other["images"][missing] = chance.integers(0, 256, other["images"][missing].shape)
        other["tokens"][missing] = chance.integers(0, VOCABULARY, other["tokens"][missing].shape)
        learner = make_learner(configure(kind), VOCABULARY)

        @jax.jit
        def loss(params, batch, learner=learner):
            sums, _ = learner.loss_sums(params, {}, batch, jax.random.key(0), None)
            return learner.combine(jnp.int32(0), sums, learner.totals(batch))

        params = params_of(kind)
        assert float(loss(params, other)) == pytest.approx(float(loss(params, batch)), rel=1e-5)


def test_accumulation_is_the_big_batch(batch):
    whole = alone(configure("vq16"), batch)
    assert_same(one_step(configure("vq16", accumulation=2), batch), whole)
    assert 1 < whole[0]["code_perplexity"] <= 32
    assert 0 < whole[0]["codes_used"] <= 1


def test_the_contrastive_loss_is_the_formula_over_all_rows(batch):
    config = configure("siglip")
    model = make_learner(config, VOCABULARY).model.bind(params_of("siglip"))
    shown = [jnp.asarray(x) for x in (batch["images"][:, 0], batch["tokens"], batch["text_weight"] > 0)]
    pairs = jax.jit(lambda *shown: model(*shown))(*shown)
    kept = [row for row in range(ROWS) if row not in (2, 3)]
    images, texts = (np.asarray(x, np.float64)[kept] for x in (pairs.images, pairs.texts))
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    sign = 2 * np.eye(len(kept)) - 1
    expected = np.log1p(np.exp(-sign * (10 * images @ texts.T - 1))).sum() / len(kept)
    metrics, _ = alone(config, batch)
    assert metrics["contrastive"] == pytest.approx(expected, rel=1e-4)
    assert (metrics["scale"], metrics["bias"]) == pytest.approx((10, -1))
    assert metrics["text_to_image"] == pytest.approx(np.mean((images @ texts.T).argmax(0) == np.arange(len(kept))))


def test_a_text_is_its_wanted_tokens_wherever_they_stand():
    model = make_learner(configure("siglip"), VOCABULARY).model.bind(params_of("siglip"))
    chance = np.random.default_rng(0)
    caption = chance.integers(1, VOCABULARY, 5)
    tokens, wanted = chance.integers(1, VOCABULARY, (3, 12)), np.zeros((3, 12), bool)
    for row, slots in enumerate(([0, 1, 2, 3, 4], [2, 3, 7, 8, 11], [7, 8, 9, 10, 11])):
        tokens[row, slots], wanted[row, slots] = caption, True
    found = np.asarray(jax.jit(model.embed_texts)(jnp.asarray(tokens), jnp.asarray(wanted)))
    np.testing.assert_allclose(found[1:], np.stack([found[0]] * 2), atol=1e-5)
    # Every token counts, the last included.
    for slot in range(5):
        other = tokens[:1].copy()
        other[0, slot] = caption[slot] % (VOCABULARY - 1) + 1
        changed = np.asarray(jax.jit(model.embed_texts)(jnp.asarray(other), jnp.asarray(wanted[:1])))
        assert np.abs(changed - found[:1]).max() > 1e-3


def test_a_caption_is_told_token_by_token_by_the_image_and_what_stands_before():
    model = make_learner(configure("captioning"), VOCABULARY).model.bind(params_of("captioning"))
    chance = np.random.default_rng(0)
    images = np.repeat(chance.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8), VOCABULARY, axis=0)
    tokens, wanted = chance.integers(1, VOCABULARY, (VOCABULARY, 9)), np.zeros((VOCABULARY, 9), bool)
    odds = jax.jit(lambda images, tokens, wanted: jnp.exp(-model(images, tokens, wanted).captions))
    # All captions of one token are a distribution, and those that go on from one of them share its odds.
    tokens[:, 1], wanted[:, 1] = np.arange(VOCABULARY), True
    first = np.asarray(odds(images, tokens, wanted))
    assert first.sum() == pytest.approx(1, rel=1e-4)
    tokens[:, 1] = 5
    tokens[:, 4], wanted[:, 4] = np.arange(VOCABULARY), True
    both = np.asarray(odds(images, tokens, wanted))
    assert both.sum() == pytest.approx(first[5], rel=1e-4)
    # The image and the token before have their say, and what is not wanted has none.
    assert np.abs(np.asarray(odds(255 - images, tokens, wanted)) / both - 1).max() > 1e-2
    tokens[:, 1] = 6
    assert np.abs(np.asarray(odds(images, tokens, wanted)) / first[6] - both / first[5]).max() > 1e-4
    tokens[:, 1], tokens[:, 2] = 5, 9
    np.testing.assert_allclose(odds(images, tokens, wanted), both, rtol=1e-5)


def test_captioning_is_a_mean_over_the_tokens_that_are_read(batch):
    config = configure("captioning")
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, tokens=6))
    learner = make_learner(config, VOCABULARY)
    params = params_of("captioning")
    blank = {**params, "captioner": {**params["captioner"], "embedding": 0 * params["captioner"]["embedding"]}}

    @jax.jit
    def losses(params, batch):
        sums, totals = learner.loss_sums(params, {}, batch, jax.random.key(0), None)[0], learner.totals(batch)
        return {name: sums[name] / totals[name] for name in sums} | {
            "loss": learner.combine(jnp.int32(0), sums, totals),
            "tokens": totals["captioning"],
        }

    found = jax.tree.map(float, losses(blank, batch))
    assert found["captioning"] == pytest.approx(np.log(VOCABULARY), rel=1e-5)
    assert found["tokens"] == 6 * (ROWS - 2)
    assert found["loss"] == pytest.approx(found["contrastive"] + 0.5 * found["captioning"], rel=1e-5)
    # What is not read changes nothing.
    wanted = np.cumsum(batch["text_weight"] > 0, axis=1)
    late = {**batch, "tokens": np.where(wanted > 6, 7, batch["tokens"])}
    assert jax.tree.map(float, losses(params, late)) == pytest.approx(jax.tree.map(float, losses(params, batch)))


@pytest.mark.parametrize("kind", matrix(["vq16", "kl16", "siglip"], fast=["siglip"]))
def test_a_run_goes_on_bit_for_bit_and_leaves_its_tower(kind, dataset, tmp_path, capsys):
    config = configure(kind)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(dataset)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert tower_main.train_tower(config, whole, evaluate.finish) == 0
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "4")
    (broken / "tower.json").unlink()
    assert tower_main.train_tower(config, broken, evaluate.finish) == 0
    runs.assert_identical(broken, whole)

    shown = capsys.readouterr().out
    rows = runs.metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert list(rows[0])[:2] == ["step", "loss"]
    tower, params = load_tower(broken)
    pair = kind in ("siglip", "captioning")
    scores = json.loads((broken / "eval.json").read_text())
    assert scores["step"] == 4
    assert all(name.replace("_", " ") in shown for name in scores)
    trained = runs.arrays(whole, 4, ["state"])
    for path, leaf in jax.tree.leaves_with_path(params):
        prefix = "state['params']" + ("['tower']" if pair else "")
        name = "".join(f"['{key.key}']" for key in path)
        if kind != "captioning" or "patch" not in name.split("'"):
            np.testing.assert_array_equal(leaf, trained[prefix + name])
    module = {"vq16": VQ16, "kl16": KL16}.get(kind, SigLIP)(tower, rngs=nnx.Rngs(0))
    nnx.update(module, params)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), dtype=np.uint8))
    assert module(images).shape == (1, 2, module.tokens, module.width)
    if pair:
        assert scores["images"] == 20
        assert "agreement battery position" in shown
        assert scores["agreement"]["weather"].keys() == {"found", "chance"}
        assert scores["candidates"] == 10
        assert 0 <= scores["image_to_text"] <= 1
        assert tower == config.tower
        return
    assert scores["psnr"] > 3
    with Image.open(broken / "reconstructions.png") as picture:
        assert picture.size == (3 * 16, 2 * 16)
    if kind == "kl16":
        assert tower.latent_scale == pytest.approx(1 / scores["latent_std"])
        assert dataclasses.replace(tower, latent_scale=config.tower.latent_scale) == config.tower


def test_what_is_no_tower_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"tower\.json: no such file; expected the --workdir of a finished"):
        load_tower(tmp_path)
    (tmp_path / "tower.json").write_text('{"kind": "vq17", "config": {}}')
    with pytest.raises(
        UsageError, match=r"tower\.json: kind='vq17': expected one of 'attribute_classifier', .*did you mean 'vq16'"
    ):
        load_tower(tmp_path)
