"""The attribute classifier: its geometry, what it learns, and a run that is stopped and goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from flax import nnx

from unihetero_jax.config import CheckpointConfig, LoggingConfig, MeshConfig, TrainConfig
from unihetero_jax.data.records.manifest import load_manifest, write_manifest
from unihetero_jax.data.smart_watch import POSITIONS, draw, sample_attributes
from unihetero_jax.data.smart_watch.face import REFERENCE_SIZE, corner
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.common.attribute_classifier import TrainedClassifier
from unihetero_jax.evaluate.common.attributes import scores
from unihetero_jax.parallel.mesh import make_mesh, place, sharding
from unihetero_jax.run import evaluate_tower as evaluate
from unihetero_jax.run import train_tower as tower_main
from unihetero_jax.towers.common.attribute_classifier.config import AttributeClassifierConfig, SpoilConfig
from unihetero_jax.towers.common.attribute_classifier.network import CORNERS, AttributeClassifier, _hour_directions
from unihetero_jax.towers.common.autoencoder.images import to_signed
from unihetero_jax.train.optimizers.adamw import AdamWConfig
from unihetero_jax.train.state import initial_state, state_shardings
from unihetero_jax.train.step import compile_step, make_step
from unihetero_jax.train.towers import base as tower_config
from unihetero_jax.train.towers.attribute_classifier.config import AttributeClassifierRunConfig
from unihetero_jax.train.towers.attribute_classifier.learner import LOSSES, attribute_losses, degrade
from unihetero_jax.train.towers.attribute_classifier.stream import WatchStream, labels
from unihetero_jax.train.towers.base import TowerDataConfig, TowerEvaluateConfig
from unihetero_jax.train.towers.common import make_learner

SMALL = AttributeClassifierConfig(image_size=32, angles=60, radii=12, channels=16, layers=2, hidden=32)


def config(**train):
    return AttributeClassifierRunConfig(
        tower=SMALL,
        data=TowerDataConfig(image_size=32),
        optimizer=AdamWConfig(learning_rate=1e-2, warmup_steps=1),
        train=TrainConfig(**{"steps": 4, "batch_size": 8, **train}),
        checkpoint=CheckpointConfig(every_steps=2),
        logging=LoggingConfig(tensorboard=False),
        evaluate=TowerEvaluateConfig(images=10, batch_size=8),
    )


def watches(count, size=32):
    truths = [sample_attributes(3, number) for number in range(count)]
    return truths, np.stack([np.asarray(draw(truth, size)) for truth in truths])


def test_corners_are_where_the_data_has_them():
    assert np.allclose(np.asarray(CORNERS) * REFERENCE_SIZE, [corner(position) for position in POSITIONS])


def test_turning_the_dial_turns_what_is_read():
    # Nothing in the corners, so that only the dial is turned by a quarter: 15 seconds.
    truth = dataclasses.replace(sample_attributes(0, 1), hour=4, minute=0, second=50, color=(20, 60, 120))
    image = np.asarray(draw(truth, 32)).copy()
    image[:7] = image[-7:] = 255
    turned = np.rot90(image, -1)
    classifier = AttributeClassifier(SMALL, rngs=nnx.Rngs(0))
    both = jax.jit(lambda images: classifier(to_signed(images, 32)))(jnp.asarray(np.stack([image, turned]))[:, None])
    np.testing.assert_allclose(both.second[1], np.roll(both.second[0], 15), atol=1e-4)
    np.testing.assert_allclose(both.color[1], both.color[0], atol=1e-5)


def test_the_hour_hand_goes_clockwise_and_between_its_marks():
    weights = _hour_directions(120).reshape(120, 12, 60)
    assert weights[30, 3, 0] == weights[35, 3, 30] == 1
    assert weights[119, 11, 59] == pytest.approx(1 / 6, abs=1e-4)
    assert weights[0, 11, 59] == pytest.approx(5 / 6, abs=1e-4)
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-6)


def test_what_a_watch_shows_as_numbers():
    watch = dataclasses.replace(
        sample_attributes(0, 0),
        hour=12,
        weather="raining",
        weather_position="bottom-left",
        battery_position="top-right",
        color=(255, 0, 51),
    )
    found = labels(watch)
    assert found["hour"] == 0
    assert found["content"].tolist() == [0, 4, 3, 0]
    assert found["battery_corner"] == 1
    assert found["color"] == pytest.approx([1, 0, 0.2])


def test_a_few_watches_are_learned_by_heart():
    truths, images = watches(24)
    learner = make_learner(config(), 0)
    shown = [labels(truth) for truth in truths]
    batch = {name: jnp.asarray(np.stack([row[name] for row in shown])) for name in shown[0]}
    signed = to_signed(jnp.asarray(images)[:, None], 32)
    optimizer = optax.adam(2e-2)

    @jax.jit
    def learn(params):
        def loss(params):
            sums, _ = attribute_losses(learner.model.bind(params)(signed), batch)
            return sum(weight * sums[name] for name, weight in LOSSES.items()) / len(truths)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 150)

    start = learner.model.init(jax.random.key(0))
    before = scores(TrainedClassifier(SMALL, start, 10).predict(images), truths)
    (params, _), values = learn(start)
    after = scores(TrainedClassifier(SMALL, params, 10).predict(images), truths)
    assert values[-1] < values[0] / 3
    for name in ("weather", "weather_position", "battery_position", "hour", "minute", "second"):
        assert after[name] > max(0.9, before[name]), name
    assert after["battery"] > 0.95
    assert after["color_error"] < 8
    # Of a picture at another size, too.
    twice = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    assert scores(TrainedClassifier(SMALL, params, 7).predict(twice), truths)["hour"] > 0.9
    assert TrainedClassifier(SMALL, params, 7).features(images).shape == (24, 16 + 32)


def test_pictures_are_spoilt_each_its_own_way():
    _, images = watches(64)
    clear = to_signed(jnp.asarray(images)[:, None], 32)
    found = np.asarray(degrade(clear, jax.random.key(0), SpoilConfig()))
    assert found.min() >= -1
    assert found.max() <= 1
    changed = np.abs(found - clear).max(axis=(1, 2, 3)) > 1e-3
    # One in sixteen is left alone by all four.
    assert 40 < changed.sum() < 64
    np.testing.assert_allclose(degrade(clear, jax.random.key(0), SpoilConfig(share=0.0)), clear, atol=1e-5)
    soft = np.asarray(degrade(clear, jax.random.key(0), SpoilConfig(share=1.0, smooth=0.0, tint=0.0, noise=0.0)))
    assert np.abs(np.diff(soft, axis=1)).mean() < np.abs(np.diff(clear, axis=1)).mean()
    np.testing.assert_allclose(soft.mean(), clear.mean(), atol=0.02)


def test_the_stream_gives_every_record_once_an_epoch_and_goes_on_where_it_was(dataset):
    settings = config()

    def draw_some(rows, state=None, count=4):
        stream = WatchStream(settings, dataset, rows, state)
        made = [next(stream) for _ in range(count)]
        stream.close()
        return made

    made = draw_some(list(range(8)), count=25)
    shown = {bytes(image) for batch, _ in made for image in batch["images"]}
    assert len(shown) == 200
    again = draw_some(list(range(8)), made[1][1], 2)
    for (batch, state), (expected, after) in zip(again, made[2:4], strict=True):
        assert all(np.array_equal(batch[name], expected[name]) for name in expected)
        assert np.array_equal(state["drawn"], after["drawn"])
    part, _ = draw_some([2, 5], count=1)[0]
    np.testing.assert_array_equal(part["images"], made[0][0]["images"][[2, 5]])


def test_split_over_devices_the_numbers_are_the_same(dataset):
    settings = config()
    stream = WatchStream(settings, dataset, list(range(8)))
    batch, _ = next(stream)
    stream.close()
    learner, descent, found = make_learner(settings, 0), optax.sgd(0.1), []
    for devices in (1, 8):
        mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
        _, places = state_shardings(learner, descent, mesh)
        state = jax.jit(lambda: initial_state(learner, descent), out_shardings=places)()
        arrays = {name: place(array, sharding(mesh, "batch")) for name, array in batch.items()}
        state, metrics = compile_step(make_step(learner, descent, mesh), places, mesh)(state, arrays)
        found.append((jax.tree.map(float, metrics), jax.tree.map(np.asarray, state["params"])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    for left, right in zip(jax.tree.leaves(found[1][1]), jax.tree.leaves(found[0][1]), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_a_run_goes_on_bit_for_bit_and_leaves_its_tower(dataset, tmp_path, capsys):
    settings = config()
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, root=str(dataset)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert tower_main.train_tower(settings, whole, evaluate.finish) == 0
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "4")
    (broken / "tower.json").unlink()
    assert tower_main.train_tower(settings, broken, evaluate.finish) == 0
    runs.assert_identical(broken, whole)
    found = json.loads((broken / "eval.json").read_text())
    assert found["images"] == 10
    assert 0 <= found["blurred"]["weather"] <= 1
    assert "real battery position" in capsys.readouterr().out
    truths, images = watches(6)
    assert len(TrainedClassifier.load(broken).predict(images)) == len(truths)


def test_other_data_and_other_towers_are_refused_in_one_line(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "other")
    write_manifest(tmp_path / "other", dataclasses.replace(load_manifest(dataset), name="folder"))
    with pytest.raises(UsageError, match="a dataset 'folder'; the attribute classifier needs 'smart_watch'"):
        WatchStream(config(), tmp_path / "other", [0])
    with pytest.raises(UsageError, match=r"tower\.json: no such file"):
        TrainedClassifier.load(tmp_path)
    about = {"kind": "siglip", "config": {}}
    (tmp_path / "tower.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match=r"config\.tower\.angles=90: expected a multiple of 60"):
        tower_config.resolve("attribute_classifier", {"tower": {"angles": 90}})
