"""What an evaluation measures with classifiers, probes, towers and texts, on models with random parameters."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from kinds import CODES, REGRESSION
from PIL import Image

from unihetero_jax.config import resolve
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate import perplexity
from unihetero_jax.evaluate.common import held_out, smart_watch
from unihetero_jax.evaluate.common.tower_features import tower_features
from unihetero_jax.generate.pooling import pooled
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.model.attention.base import Packed
from unihetero_jax.run import evaluation as main
from unihetero_jax.towers.common.attribute_classifier.config import AttributeClassifierConfig
from unihetero_jax.towers.common.attribute_classifier.network import AttributeClassifier
from unihetero_jax.towers.common.stored import save_tower
from unihetero_jax.towers.siglip.config import SigLIPSizes
from unihetero_jax.towers.siglip.network import SigLIP

CLASSIFIER = AttributeClassifierConfig(image_size=32, angles=60, radii=8, channels=8, layers=2, hidden=16)
SIGLIP = SigLIPSizes(width=16, layers=1, heads=2, mlp_width=32, patch_size=8, image_size=16)


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A classifier, a tower and a text."""
    root = tmp_path_factory.mktemp("tools")
    for kind, settings, module in (
        ("attribute_classifier", CLASSIFIER, AttributeClassifier),
        ("siglip", SIGLIP, SigLIP),
    ):
        (root / kind).mkdir()
        params = nnx.to_pure_dict(nnx.state(module(settings, rngs=nnx.Rngs(0)), nnx.Param))
        save_tower(root / kind, kind, settings, params)
    (root / "text.txt").write_text("It is sunny.\nThe time is 10:08:30.\n\n\nThe battery is at 80%.\n")
    return root


@pytest.fixture(scope="module")
def images(watch_data):
    return smart_watch.watches(watch_data, "test", 32, 6)[0]


def test_every_layers_states_are_those_on_the_way_to_the_hidden_ones(trained):
    model, draws = trained.model.bind(trained.params), np.random.default_rng(0)
    x = jnp.asarray(draws.normal(size=(2, 10, 32)), jnp.float32)
    position = jnp.broadcast_to(jnp.arange(10), (2, 10))
    readable = Packed(jnp.ones((2, 10), jnp.int32))
    states = jax.jit(lambda x: model.decoder.states(x, position, readable))(x)
    hidden = jax.jit(lambda x: model.decoder(x, position, readable)[0])(x)
    assert states.shape == (2, 2, 10, 32)
    np.testing.assert_allclose(model.decoder.norm(states[-1]), hidden, atol=1e-5)
    assert np.abs(np.asarray(states[0] - states[1])).max() > 1e-2


@pytest.mark.parametrize("role", ["input", "both"])
def test_states_of_pictures_do_not_depend_on_their_neighbours(make_trained, images, role):
    predictor = Predictor(make_trained(**{"data.input_role": role}))
    found = predictor.states(images)
    assert list(found) == ["adapter", "layer_01", "layer_02"]
    assert all(array.shape == (6, 16 * 32) for array in found.values())
    # One adapter serves both sides here.
    np.testing.assert_allclose(found["adapter"], pooled(jnp.asarray(predictor.embed(images))), atol=1e-5)
    alone = predictor.states(images[3:4])
    for name, array in found.items():
        np.testing.assert_allclose(alone[name][0], array[3], atol=1e-4)
        assert np.abs(array[3] - array[4]).max() > 1e-2


def test_reconstructions_are_what_the_pictures_are_made_of(trained, make_trained, images):
    np.testing.assert_array_equal(Predictor(trained).reconstruct(images), images)
    np.testing.assert_array_equal(Predictor(make_trained(**REGRESSION)).reconstruct(images), images)
    coded = make_trained(**CODES)
    predictor = Predictor(coded)
    found = predictor.reconstruct(images)
    tower = coded.model.bind(coded.params).generation_tower
    decode = jax.jit(lambda signed: tower.decode_latent(tower.encode(signed)[0]))
    expected = np.asarray(decode(jnp.asarray(images, jnp.float32) / 127.5 - 1)) * 127.5 + 127.5
    assert np.abs(found - np.clip(expected, 0, 255)).max() < 2
    assert Predictor(make_trained(**{"losses.pixel.weight": 0.0})).reconstruct(images) is None


def test_text_is_the_text_loss_without_its_regulariser(make_trained, watch_data):
    for z_loss, same in ((0.0, True), (0.1, False)):
        trained = make_trained(**{"losses.text.z_loss": z_loss})
        predictor = Predictor(trained)
        batch = next(held_out.packed_rows(trained.config, watch_data, trained.tokenizer)["understanding"])
        total, weight = predictor.text(batch)
        sums = predictor.held_out(batch)
        assert weight == sums["text_weight"].sum()
        assert (total == pytest.approx(float(sums["text_sum"]), rel=1e-5)) is same


def test_every_token_of_a_text_is_predicted_once(trained):
    coder, seen = trained.tokenizer, []

    def text_loss(batch):
        assert batch["tokens"].shape == (2, 7)
        predicted = batch["text_weight"] > 0
        assert not predicted[:, 0].any()
        assert (batch["segment"][predicted] == 1).all()
        # Text that is predicted stands right behind what it is predicted from.
        seen.extend(zip(np.roll(batch["tokens"], 1, axis=1)[predicted], batch["tokens"][predicted], strict=True))
        return float(predicted.sum()) * np.log(8), float(predicted.sum())

    texts = ["The time is 10:08:30 and it is sunny.", "Hi."]
    found = perplexity.measure(text_loss, texts, coder, 7, 32, 2)
    ids = [[coder.begin_id, *coder.encode(text), coder.end_id] for text in texts]
    assert seen == [pair for text in ids for pair in itertools.pairwise(text)]
    assert found == pytest.approx(
        {
            "perplexity": 8,
            "bits_per_token": 3,
            "bits_per_byte": 3 * len(seen) / len("".join(texts)),
            "tokens": len(seen),
            "documents": 2,
        }
    )


def test_texts_of_files(tools, tmp_path):
    found = perplexity.documents(tools / "text.txt")
    assert found == ["It is sunny.\nThe time is 10:08:30.", "The battery is at 80%."]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two\\n\\nthree"}\n')
    assert perplexity.documents(tmp_path / "a.jsonl") == ["one", "two\n\nthree"]
    (tmp_path / "b.jsonl").write_text('{"words": "one"}\n')
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "d.txt").write_text(" \n\n")
    for name, complaint in (
        ("b.jsonl", 'expected a line of JSON with "text"'),
        ("c.txt", "expected text in UTF-8"),
        ("d.txt", "expected text, but there is none"),
        ("e.txt", "cannot be read: No such file"),
    ):
        with pytest.raises(UsageError, match=complaint) as caught:
            perplexity.documents(tmp_path / name)
        assert str(caught.value).startswith(f"text={tmp_path / name}: ")


def test_any_tower_gives_a_feature_a_picture(tools, images):
    for kind, width in (("attribute_classifier", 8 + 16), ("siglip", 16)):
        features = tower_features(tools / kind, batch_size=4)
        found = features(images)
        assert found.shape == (6, width)
        np.testing.assert_allclose(features(images[5:]), found[5:], atol=1e-4)


def test_everything_at_once(trained, tools):
    wanted = main.with_changes(
        trained,
        {
            "evaluators.generation.attribute_classifier": str(tools / "attribute_classifier"),
            "evaluators.generation.frechet": str(tools / "siglip"),
            "evaluators.generation.probes": True,
            "evaluators.generation.training_images": 12,
            "evaluators.probes.images": 12,
            "evaluators.captions.kind": "captions",
            "evaluators.perplexity.text": str(tools / "text.txt"),
            "evaluators.losses": None,
            "evaluators.vqa": None,
        },
    )
    found = main.run_evaluators(wanted)
    stored = found.to_json()
    json.dumps(stored, allow_nan=False)
    drawn = stored["generation"]
    pictures = ["drawn", "another", "taught", "reconstructed", "real"]
    assert list(drawn["read"]) == pictures
    assert list(drawn["frechet"]) == [name for name in pictures if name != "another"]
    assert list(drawn["probe"]) == ["drawn", "another", "taught", "real"]
    assert drawn["frechet"]["reconstructed"] == drawn["frechet"]["real"]
    assert list(drawn["collapse"]) == ["true", "free", "taught"]
    assert len(drawn["free_error_by_position"]) == 16
    assert drawn["drift"] != 0
    assert list(stored["probes"]) == ["adapter", "layer_01", "layer_02", "constant"]
    assert set(stored["probes"]["layer_01"]) == set(drawn["read"]["real"])
    assert stored["captions"]["total"]["count"] == 6
    assert 1 < stored["perplexity"]["perplexity"] < 1e6
    shown = found.table()
    for word in (
        "attributes of images",
        "Fréchet distance",
        "probes of layers",
        "layer 02",
        "captions",
        "bits per byte",
    ):
        assert word in shown
    plain = main.run_evaluators(main.with_changes(trained, {"evaluators.losses": None, "evaluators.vqa": "none"}))
    assert list(plain.results) == ["answers", "generation"]
    assert {"read", "frechet", "probe"}.isdisjoint(plain.to_json()["generation"])


def test_an_evaluation_can_be_asked_for_more_than_its_training(trained, tools):
    tool = str(tools / "attribute_classifier")
    changes = {"evaluators.generation.attribute_classifier": tool, "evaluators.mine.kind": "probes"}
    config = main.with_changes(trained, {**changes, "evaluators.mine.images": "5"}).config
    assert config.evaluators["mine"].images == 5
    assert config.evaluators["generation"].attribute_classifier == tool
    assert config.train == trained.config.train
    assert main.with_changes(trained, {}) is trained
    for key, place, complaint in (
        ("generation.attribute_classifier", "siglip", "another kind of tower; expected a workdir of `unihetero towers"),
        ("generation.attribute_classifier", "none", r"config\.evaluators\.generation\.attribute_class.*: no such file"),
        ("generation.frechet", "none", r"config\.evaluators\.generation\.frechet: .*tower\.json: no such file"),
        ("perplexity.text", "none", r"config\.evaluators\.perplexity\.text=.*none: cannot be read: No such file"),
    ):
        with pytest.raises(UsageError, match=complaint):
            main.with_changes(trained, {f"evaluators.{key}": str(tools / place)})
    with pytest.raises(
        UsageError, match=r"config\.train\.steps cannot be changed any more: expected a key of config\.ev"
    ):
        main.with_changes(trained, {"train.steps": 3})


OWN = """
from dataclasses import dataclass

import numpy as np

from unihetero_jax.config.components import EVALUATORS, EvaluatorConfig
from unihetero_jax.config.constraints import PositiveInt
from unihetero_jax.evaluate.base import Context, Result


@dataclass(frozen=True)
class BrightnessConfig(EvaluatorConfig):
    images: PositiveInt = 2


@EVALUATORS.register("brightness", config=BrightnessConfig)
def evaluate(config: BrightnessConfig, context: Context) -> Result:
    requests = context.requests()
    images = context.predictor.generate_images(requests.requests[: config.images]).images
    found = {"mean": float(images.mean()), "true": np.float32(requests.images.mean()), "step": context.step}
    return Result(found, [f"brightness {images.mean():.1f}"], {"first.png": images[0], "note.txt": b"seen"})
"""


def test_an_evaluator_of_ones_own_is_a_file(trained, tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    values = trained.config.to_dict() | {"imports": [str(tmp_path / "own.py")]}
    values["evaluators"] = {
        "mine": {"kind": "brightness", "images": 1},
        "vqa": None,
        "losses": None,
        "generation": None,
    }
    main.finish(dataclasses.replace(trained, config=resolve(values)), tmp_path)
    stored = json.loads((tmp_path / "eval.json").read_text())
    assert list(stored) == ["step", "answers", "mine"]
    assert stored["mine"]["step"] == 7
    assert 0 < stored["mine"]["mean"] < 255
    assert (tmp_path / "note.txt").read_bytes() == b"seen"
    with Image.open(tmp_path / "first.png") as picture:
        assert picture.size == (32, 32)
    assert "brightness " in capsys.readouterr().out
