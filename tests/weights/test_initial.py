"""A run that starts from weights."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import random_params, tiny_config

from unihetero_jax.checkpoint.writer import CheckpointWriter
from unihetero_jax.config import MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.model import initial_weights as initial
from unihetero_jax.model.build import define
from unihetero_jax.model.initial_weights import start_from
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.run import convert_weights as main
from unihetero_jax.run.workdir import copy_tokenizer
from unihetero_jax.train.state import initial_state, start_new, state_shardings, to_pure
from unihetero_jax.train.unified import UnifiedLearner
from unihetero_jax.weights import to_hf

VOCABULARY, ROWS = 700, 768
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "hf"
CHANGES = {
    "model.decoder.logit_scale": 1.0,
    "model.decoder.qk_norm": True,
    "losses.semantic.target_gradient": "ema",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of a decoder with numbers of its own, and the import of it; 600 ids."""
    config = tiny_config(**CHANGES)
    model = define(config, 600)
    params = jax.tree.map(jnp.asarray, random_params(model.shapes()))["decoder"]
    place = tmp_path_factory.mktemp("published")
    to_hf(params, config.model.decoder, place / "hf", vocabulary=600)
    main.import_weights(place / "hf", place / "imported")
    return place, jax.tree.map(np.asarray, params)


@pytest.mark.parametrize("source", ["hf", "imported"])
def test_the_decoder_is_taken_sharded_and_the_rest_initialised(source, published, tmp_path):
    place, expected = published
    # A tokenizer with more ids than theirs, or with fewer.
    for vocabulary, rows in ((VOCABULARY, ROWS), (500, 512)):
        states = []
        mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
        for path in ("", str(place / source)):
            config = tiny_config(**CHANGES, **{"init.path": path, "optimizer.groups.towers.frozen": True})
            model = define(config, vocabulary)
            learner = UnifiedLearner(config, model)
            optimizer = learner.optimizer()
            _, places = state_shardings(learner, optimizer, mesh)
            states.append(start_new(learner, optimizer, places, mesh))
            assert jax.tree.structure(states[-1]) == jax.tree.structure(places)
        plain, started = (state["params"] for state in states)
        decoder = started.pop("decoder")
        jax.tree.map(np.testing.assert_array_equal, decoder["layers"], expected["layers"])
        known = min(600, rows)
        np.testing.assert_array_equal(decoder["embedding"][:known], expected["embedding"][:known])
        mean = expected["embedding"][:600].mean(axis=0)
        np.testing.assert_allclose(decoder["embedding"][known:], np.tile(mean, (rows - known, 1)), rtol=1e-4, atol=1e-6)
        assert decoder["embedding"].shape == (rows, 32)
        assert decoder["layers"]["gate"]["kernel"].sharding == places["params"]["decoder"]["layers"]["gate"]["kernel"]
        assert decoder["embedding"].sharding == places["params"]["decoder"]["embedding"]
        del plain["decoder"]
        jax.tree.map(np.testing.assert_array_equal, started, plain)
        assert states[1]["ema"].keys() == states[0]["ema"].keys() != set()


def test_what_was_taken_from_where_is_said(published, monkeypatch):
    place, _ = published
    config = tiny_config(**CHANGES, **{"init.path": str(place / "hf")})
    model = define(config, VOCABULARY)
    said = []
    monkeypatch.setattr(initial.log, "info", lambda text, *values: said.append(text % values))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    start_from(config, model, jax.jit(model.init)(jax.random.key(0)), mesh)
    assert any(line.startswith("decoder: ") and line.endswith(f"parameters from {place / 'hf'}") for line in said)
    assert any(line.startswith("understanding_tower: ") and line.endswith("parameters initialized") for line in said)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model.decoder.rope_theta": 5e5}, "config.model.decoder.rope_theta=500000.0: the weights of"),
        ({"model.decoder.logit_scale": 0.15}, "need 1.0"),
        ({"model.decoder.rope_scaling.kind": "linear"}, "config.model.decoder.rope_scaling.kind='linear': the weights"),
        ({"model.decoder.mlp_width": 96}, "has shape [64, 32], expected [96, 32]"),
        ({"model.decoder.layers": 3}, "parameters are missing: layers.2."),
        ({"init.parts": "towers"}, "holds a decoder only"),
        ({"init.path": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_weights_of_another_model_are_refused(change, expected, published):
    place, _ = published
    config = tiny_config(**{**CHANGES, "init.path": str(place / "hf"), **change})
    model = define(config, VOCABULARY)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UsageError) as caught:
        start_from(config, model, dict.fromkeys(model.shapes()), mesh)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parts_of_another_run(tmp_path):
    before = tiny_config(**CHANGES, **{"train.seed": 3})
    model = define(before, VOCABULARY)
    learner = UnifiedLearner(before, model)
    old = jax.jit(lambda: initial_state(learner, learner.optimizer()))()
    writer = CheckpointWriter(tmp_path, before.checkpoint)
    writer.save(4, to_pure(old), {"drawn": np.zeros(2, np.int32)}, {"config": before.to_dict(), "timers": {}})
    writer.close()
    mesh = make_mesh(MeshConfig())
    for parts, names in (("all", set(old["params"])), ("decoder", {"decoder"}), ("towers", {"understanding_tower"})):
        config = tiny_config(**CHANGES, **{"init.path": str(tmp_path), "init.parts": parts})
        fresh = jax.jit(model.init)(jax.random.key(0))
        started = start_from(config, model, dict(fresh), mesh)
        assert started.keys() == fresh.keys()
        for name, params in started.items():
            source = old["params"] if name in names else fresh
            jax.tree.map(np.testing.assert_array_equal, params, source[name])
    config = tiny_config(**CHANGES, **{"init.path": str(FIXTURES / "siglip")})
    with pytest.raises(
        UsageError, match=r"siglip_vision_model tower: expected it as config\.init\.understanding_tower"
    ):
        start_from(config, model, dict.fromkeys(model.shapes()), mesh)
    other = tiny_config(**CHANGES, **{"init.path": str(tmp_path), "model.understanding_tower.width": 28})
    with pytest.raises(UsageError, match=r"params\.understanding_adapter.* expected shape"):
        start_from(other, define(other, VOCABULARY), dict.fromkeys(model.shapes()), mesh)


def test_a_run_with_lora_says_where_its_decoder_is_whole(tmp_path):
    before = tiny_config(**CHANGES, **{"model.lora.rank": 2})
    writer = CheckpointWriter(tmp_path, before.checkpoint)
    items = {"config": before.to_dict(), "timers": {}}
    writer.save(4, {"params": {"lora": np.zeros(2)}}, {"drawn": np.zeros(2, np.int32)}, items)
    writer.close()
    config = tiny_config(**CHANGES, **{"init.path": str(tmp_path)})
    model = define(config, VOCABULARY)
    with pytest.raises(UsageError, match=r"a run with LoRA, .*`unihetero weights export`"):
        start_from(config, model, dict.fromkeys(model.shapes()), make_mesh(MeshConfig()))


def test_the_tokenizer_comes_along_when_asked(tmp_path):
    for name in ("theirs", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "tokenizer.model").write_text("ours")
    config = tiny_config(**{"init.path": str(tmp_path / "theirs"), "init.tokenizer": True})
    with pytest.raises(UsageError, match=r"theirs has neither tokenizer\.json nor tokenizer\.model"):
        copy_tokenizer(config, tmp_path / "data", tmp_path / "run")
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / "theirs" / name).write_text(f"their {name}")
        run = tmp_path / f"run-{name}"
        run.mkdir()
        copy_tokenizer(config, tmp_path / "data", run)
        assert [(file.name, file.read_text()) for file in run.iterdir()] == [(name, f"their {name}")]
    run = tmp_path / "run"
    run.mkdir()
    copy_tokenizer(tiny_config(**{"data.tokenizer": str(tmp_path / "data" / "tokenizer.model")}), tmp_path, run)
    assert (run / "tokenizer.model").read_text() == "ours"


@pytest.mark.parametrize(("parts", "same", "warned"), [("all", False, 1), ("all", True, 0), ("towers", False, 0)])
def test_a_decoder_that_was_trained_with_another_tokenizer_is_said(tmp_path, monkeypatch, parts, same, warned):
    data, theirs, workdir = (tmp_path / name for name in ("data", "theirs", "run"))
    for place in (data, theirs, workdir):
        place.mkdir()
    (data / "tokenizer.model").write_bytes(b"pieces")
    (theirs / "tokenizer.model").write_bytes(b"pieces" if same else b"other pieces")
    said = []
    monkeypatch.setattr(
        logging.getLogger("unihetero_jax.run.workdir"), "warning", lambda text, *given: said.append(text % given)
    )
    config = tiny_config(
        **{"init.path": str(theirs), "init.parts": parts, "data.tokenizer": str(data / "tokenizer.model")}
    )
    for _ in range(2):  # the second start takes what is there
        copy_tokenizer(config, data, workdir)
    assert len(said) == warned
    assert all("config.init.tokenizer=True takes it" in text for text in said)
    assert (workdir / "tokenizer.model").read_bytes() == b"pieces"
