"""The angle between the losses' gradients on each layer: the right one, at no cost to what is learned."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from packed import DESCENT, VOCABULARY, compiled_step, configure, one_step, random_batch
from runs import build_dataset, finish, metrics, train_command
from runs import start as start_run

from unihetero_jax.config import resolve
from unihetero_jax.errors import UsageError
from unihetero_jax.model.build import define
from unihetero_jax.train.gradient_cosines import is_measurement
from unihetero_jax.train.towers import base as tower_config
from unihetero_jax.train.unified import UnifiedLearner

PLAIN = {"model.decoder.dropout": 0.0}
MEASURED = {**PLAIN, "train.gradient_cosines_every": 2}


def angles(found):
    return {name: float(value) for name, value in found.items() if is_measurement(name)}


def gradient(config, params, batch, name):
    """That of one objective alone, with its weight, on each layer: [L, everything of a layer]."""
    learner = UnifiedLearner(config, define(config, VOCABULARY))

    def loss(params):
        sums, _ = learner.loss_sums(params, {}, batch, jax.random.key(0), None)
        weight = config.losses[name].weight
        return weight * sums[name] / learner.totals(batch)[name]

    layers = jax.jit(jax.grad(loss))(params)["decoder"]["layers"]
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(layers)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def test_it_is_the_angle_between_the_gradients_of_each_alone():
    config = configure(**MEASURED)
    before, _, found = one_step(config)
    batch = random_batch(config)
    text, semantic = (gradient(config, before["params"], batch, name) for name in ("text", "semantic"))
    for layer in range(config.model.decoder.layers):
        norms = np.linalg.norm(text[layer]), np.linalg.norm(semantic[layer])
        cosine = text[layer] @ semantic[layer] / np.prod(norms)
        assert found[f"gradient_cosine/text_semantic/{layer}"] == pytest.approx(cosine, abs=1e-4)
        assert found[f"gradient_norm/text/{layer}"] == pytest.approx(norms[0], rel=1e-4)
        assert found[f"gradient_norm/semantic/{layer}"] == pytest.approx(norms[1], rel=1e-4)
        # The pixel head is detached: nothing of it reaches the decoder.
        assert found[f"gradient_norm/pixel/{layer}"] == found[f"gradient_cosine/text_pixel/{layer}"] == 0
    assert angles(found).keys() == {
        f"{kind}/{layer}"
        for layer in range(config.model.decoder.layers)
        for kind in (
            *(f"gradient_norm/{name}" for name in ("text", "semantic", "pixel")),
            *(f"gradient_cosine/{pair}" for pair in ("text_semantic", "text_pixel", "semantic_pixel")),
        )
    }


def test_measuring_changes_nothing_that_is_learned():
    _, plain, _ = one_step(configure(**PLAIN))
    _, watched, _ = one_step(configure(**MEASURED))
    for left, right in zip(jax.tree.leaves(plain["params"]), jax.tree.leaves(watched["params"]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "split"), [({"train.accumulation": 2}, (1, 1, 1, 1)), ({}, (1, 2, 1, 2))], ids=["parts", "devices"]
)
def test_parts_of_a_batch_and_devices_make_no_difference(changes, split):
    _, _, alone = one_step(configure(**MEASURED))
    _, _, found = one_step(configure(**MEASURED, **changes), split)
    for name, value in angles(alone).items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_a_step_that_is_not_due_has_none():
    step, state, batch = compiled_step(configure(**MEASURED), DESCENT)
    state, first = step(state, batch)
    _, second = step(state, batch)
    assert not any(map(np.isnan, angles(first).values()))
    assert all(map(np.isnan, angles(second).values()))


def test_rows_of_a_run_have_them_when_they_are_due(tmp_path):
    data = build_dataset(tmp_path / "data")
    settings = ("train.steps=3", "train.gradient_cosines_every=2")
    finish(start_run(train_command(tmp_path / "run", data, *settings)))
    assert [bool(angles(row)) for row in metrics(tmp_path / "run")] == [True, False, True]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"optimizer": {"groups": {"decoder": {"frozen": True}}}}, "a decoder that is not trained"),
        ({"model": {"lora": {"rank": 4}}}, "a decoder that is not trained"),
        ({"losses": {"semantic": {"weight": 0.0}, "pixel": {"weight": 0.0}}}, "with one loss"),
    ],
)
def test_where_there_is_nothing_to_compare_it_is_refused(changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        resolve({"train": {"gradient_cosines_every": 10}, **changes})


def test_a_tower_has_no_such_layers():
    with pytest.raises(UsageError, match="a tower has no decoder"):
        tower_config.resolve("vq16", {"train": {"gradient_cosines_every": 10}})
