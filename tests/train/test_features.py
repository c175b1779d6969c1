"""Features computed before: a run that reads them is the run whose frozen towers make them, and no other's are read."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from matrices import matrix
from packed import loss_sums

from unihetero_jax import cli
from unihetero_jax.config import Config
from unihetero_jax.config import loading as config_file
from unihetero_jax.data.packing import slots
from unihetero_jax.data.pipeline import batches, open_mixture
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.common import held_out
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.model.build import define
from unihetero_jax.model.stored_features import make_towers, open_features, restore_towers
from unihetero_jax.parallel.mesh import evaluation_mesh
from unihetero_jax.plan.lowering import batch_shapes
from unihetero_jax.run import features
from unihetero_jax.run import train_model as main
from unihetero_jax.run.benchmark import synthetic_batch
from unihetero_jax.run.load_model import load_trained
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.towers.common.vit.network import VisionTransformer

AUTOENCODER = {
    "image_size": "8",
    "channels": "8",
    "multipliers": "1,1",
    "blocks": "1",
    "groups": "4",
    "encoder_attention": "()",
    "decoder_attention": "()",
}
VIT = {"image_size": "32", "patch_size": "8", "width": "16", "layers": "2", "heads": "2", "mlp_width": "32"}
COMMON = {
    "logging.tensorboard": "false",
    "train.steps": "3",
    "evaluate.batch_size": "8",
    "evaluate.images": "8",
    "model.understanding_tower.kind": "siglip",
    **{f"model.understanding_tower.{key}": value for key, value in VIT.items()},
}
KINDS = {
    # One tower reads and is predicted, also where an image is only shown; latents are drawn from their posterior.
    "kl": {
        "data.input_role": "both",
        "model.pixel_tower.kind": "kl16",
        "model.pixel_tower.sample": "true",
        "model.pixel_tower.latent": "4",
        **{f"model.pixel_tower.{key}": value for key, value in AUTOENCODER.items()},
    },
    # Two towers, of which the second gives codes, which it also decodes.
    "vq": {
        "model.generation": "codes",
        "model.generation_tower.kind": "vq16",
        "model.generation_tower.hidden": "8",
        "model.generation_tower.codes": "32",
        **{f"model.generation_tower.{key}": value for key, value in AUTOENCODER.items()},
        "losses.semantic.weight": "0",
        "losses.pixel.weight": "0",
        "losses.codes.weight": "0.2",
    },
}
# Raw patches are predicted beside stored features of the tower that reads.
RAW = {"data.input_role": "both", "model.pixel_tower.kind": "pixels", "model.pixel_tower.patch_size": "8"}
TOWERS = {
    "kl": ("understanding_tower", "pixel_tower"),
    "vq": ("understanding_tower", "generation_tower"),
    "raw": ("understanding_tower",),
}


def configure(kind: str, root: Path, **changes: str) -> Config:
    values = {"data.root": str(root), **COMMON, **{**KINDS, "raw": RAW}[kind], **changes}
    return config_file.load(runs.TINY, list(values.items()))


def cached(kind: str, root: Path, folder: Path, **changes: str) -> Config:
    towers = {f"model.{name}.cached": "true" for name in TOWERS[kind]}
    return configure(kind, root, **{"data.features": str(folder), **towers, **changes})


@pytest.fixture(scope="module")
def folder(watch_data, tmp_path_factory) -> Callable[[str], Path]:
    """Kind → the folder of its features; each is made once."""
    place = tmp_path_factory.mktemp("features")

    @functools.cache
    def make(kind: str) -> Path:
        features.compute_features(configure(kind, watch_data), place / kind, "float32")
        return place / kind

    return make


@pytest.fixture(scope="module")
def coder(watch_data) -> Tokenizer:
    return Tokenizer.load(watch_data / "tokenizer.model")


def first_batch(config: Config, root: Path, coder: Tokenizer, with_pixels: bool = False) -> dict[str, np.ndarray]:
    rows = list(range(config.train.batch_size))
    stored = open_features(config, root)
    samples = open_mixture(config, root, "train", config.train.seed, stored)
    stream = batches(config, samples, coder, rows, len(rows), None, stored, with_pixels)
    try:
        return next(stream)[0]
    finally:
        stream.close()


@pytest.mark.parametrize("kind", matrix(KINDS, fast=["kl"]))
def test_features_of_the_dataset_give_the_losses_of_the_towers(kind, folder, watch_data, coder, monkeypatch):
    seeing, reading = configure(kind, watch_data), cached(kind, watch_data, folder(kind))
    plain, given = (first_batch(config, watch_data, coder, with_pixels=True) for config in (seeing, reading))
    assert set(given) - set(plain) == {f"{name}_features" for name in TOWERS[kind]}
    assert all(np.array_equal(given[name], plain[name]) for name in plain)
    with monkeypatch.context() as patched:
        patched.setattr(slots, "decode_into", None)
        alone = first_batch(reading, watch_data, coder)
    assert {*alone, "images"} == set(given)
    assert all(np.array_equal(alone[name], given[name]) for name in alone)
    assert (given["understanding_tower_features"].any(axis=(2, 3)) == (given["role"] > 0)).all()

    chance = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: chance.normal(0.0, 0.2, leaf.shape).astype(leaf.dtype),
        define(seeing, coder.vocabulary_size).shapes(),
    )
    params |= make_towers(seeing, TOWERS[kind], coder.vocabulary_size, evaluation_mesh(8))

    def losses(config: Config, batch: dict[str, np.ndarray]):
        model = define(config, coder.vocabulary_size)
        mine = jax.tree.map(np.asarray, {name: params[name] for name in model.shapes()})
        key = jax.random.key(3)
        sums = jax.jit(lambda mine: loss_sums(config, model.bind(mine), batch, key=key)[0])
        return set(mine), sums(mine)

    whole, expected = losses(seeing, plain)
    parts, found = losses(reading, given)
    assert whole - parts == {"understanding_tower"}
    assert set(expected) == {"kl": {"text", "semantic", "pixel"}, "vq": {"text", "codes"}}[kind]
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    # Nothing depends on pictures that came for nothing, not by a bit.
    _, same = losses(reading, alone)
    assert {name: float(same[name]) for name in same} == {name: float(found[name]) for name in found}
    with pytest.raises(UsageError, match=r"\.\w+_tower encodes images: the batch has none; it has "):
        losses(seeing, alone)


def test_pixels_come_where_a_tower_is_without_features(folder, watch_data, coder):
    config = cached("raw", watch_data, folder("kl"))
    assert first_batch(config, watch_data, coder)["images"].any()
    made = first_batch(cached("kl", watch_data, folder("kl")), watch_data, coder)
    assert "images" not in made
    assert "images" not in synthetic_batch(made, 9)
    assert batch_shapes(cached("kl", watch_data, folder("kl")), None).keys() == made.keys()


@pytest.mark.slow
def test_a_run_on_features_is_the_run_with_the_towers_and_is_shown_other_images(folder, watch_data, tmp_path):
    config = cached("kl", watch_data, folder("kl"))
    assert main.train_model(configure("kl", watch_data), tmp_path / "towers") == 0
    assert main.train_model(config, tmp_path / "features") == 0
    expected, found = (runs.metrics(tmp_path / name) for name in ("towers", "features"))
    assert len(found) == 3
    for left, right in zip(found, expected, strict=True):
        assert left == pytest.approx(right, rel=1e-5)
    stored = runs.arrays(tmp_path / "features", 3, ["state"])
    assert not [name for name in stored if name.startswith("state['params']['understanding_tower']")]

    seeing, whole = (load_trained(tmp_path / name) for name in ("features", "towers"))
    assert not runs.differing(*(flat(trained.params["understanding_tower"]) for trained in (seeing, whole)))
    rows = next(held_out.packed_rows(seeing.config, watch_data, seeing.tokenizer)["generation"])
    left, right = (Predictor(trained).held_out(rows) for trained in (seeing, whole))
    for name in right:
        # Sums of cosines of both signs come near zero.
        np.testing.assert_allclose(left[name], right[name], rtol=1e-4, atol=1e-5 * np.abs(right[name]).max())


def test_the_towers_are_made_again_only_if_they_are_the_same(folder, watch_data, coder):
    mesh = evaluation_mesh(8, jax.devices()[:1])
    config = cached("kl", watch_data, folder("kl"))
    made = restore_towers(config, {"pixel_tower": {}}, coder.vocabulary_size, mesh)
    assert set(made) == {"understanding_tower"}
    other = cached("kl", watch_data, folder("kl"), **{"train.seed": "1"})
    with pytest.raises(UsageError, match=r"made by another understanding_tower \(digest \w{16}\) than the one of conf"):
        restore_towers(other, {"pixel_tower": {}}, coder.vocabulary_size, mesh)


def run_on(monkeypatch, sources: dict[str, list], root: Path, out: Path, dtype: str) -> None:
    """The verb on other records, with one tower."""
    monkeypatch.setattr(Dataset, "split", lambda dataset, name: sources.get(name.removeprefix("train_"), []))
    config = configure("kl", root, **{"losses.pixel.weight": "0"})
    features.compute_features(config, out, dtype, ["train"])


def test_what_cannot_be_read_has_no_features_and_is_listed(monkeypatch, watch_data, tmp_path, capsys):
    good = Dataset(watch_data).split("train_vqa")[0]["image"]
    records = [{"image": good}, {"image": good[:-100]}, {}, {"images": [good, b"", good]}]
    run_on(monkeypatch, {"vqa": records}, watch_data, tmp_path / "f", "float16")
    assert "5 images by understanding_tower, 2 of them undecodable, " in capsys.readouterr().out
    about = json.loads((tmp_path / "f" / "features.json").read_text())["splits"]["train_vqa"]
    assert about == {"records": 4, "images": 5, "undecodable": [1, 3]}
    made = np.load(tmp_path / "f" / "train_vqa.understanding_tower.npy")
    assert made.dtype == np.float16
    assert made.any(axis=(1, 2)).tolist() == [True, False, True, False, True]
    np.testing.assert_array_equal(made[0], made[4])


def test_features_that_the_type_cannot_hold_leave_no_folder(monkeypatch, watch_data, tmp_path):
    records = [{"image": Dataset(watch_data).split("train_vqa")[0]["image"]}]
    monkeypatch.setattr(VisionTransformer, "stored", lambda tower, images: jnp.full((8, 1, 16, 16), -1e5))
    with pytest.raises(UsageError, match=r"train_vqa: understanding_tower gives 1e\+05, .* expected --dtype=float32"):
        run_on(monkeypatch, {"vqa": records}, watch_data, tmp_path / "f", "float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"model.understanding_tower.layer": "-2"},
            r"with config\.model\.understanding_tower\.layer=-1, not -2",
        ),
        ({"model.pixel_tower.sample": "false"}, r"made with config\.model\.pixel_tower\.sample=True, not False"),
        ({"train.seed": "1"}, r"made with config\.train\.seed=0, not 1"),
        ({"init.understanding_tower": "/w"}, r"made with config\.init\.understanding_tower='', not '/w'"),
        ({"optimizer.frozen_dtype": "bfloat16"}, r"with config\.optimizer\.frozen_dtype='float32', not 'bfloat16'"),
        (
            {"data.max_pixels": "9"},
            r"made with config\.data\.max_pixels=50000000, not 9",
        ),
        (
            {"data.features": "nowhere"},
            r"nowhere/features\.json: no such file; expected a folder made by `unihetero tow",
        ),
    ],
)
def test_features_of_other_towers_are_refused(folder, watch_data, changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        open_features(cached("kl", watch_data, folder("kl"), **changes), watch_data)


def test_how_a_tower_is_used_does_not_matter_to_its_features(folder, watch_data):
    changes = {f"model.{side}_distortion.strength": "0.3" for side in ("understanding", "generation")}
    changes["model.understanding_tower.capacity"] = "0.5"
    assert open_features(cached("kl", watch_data, folder("kl"), **changes), watch_data) is not None


def test_features_of_another_dataset_are_refused(folder, watch_data, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(watch_data, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["tokenizer.model"]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=rf"made from another dataset \(digest \w+\) than config\.data\.root={other}"):
        open_features(cached("kl", other, folder("kl")), other)


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("train_vqa.pixel_tower.npy", lambda path: path.unlink(), r"train_vqa\.pixel_tower\.npy: missing, though"),
        (
            "test_vqa.offsets.npy",
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            r"offsets\.npy: \d+ bytes, feat",
        ),
        ("features.json", lambda path: path.write_text("{"), r"features\.json: truncated, or not made by"),
        ("features.json", lambda path: path.unlink(), r"features\.json: no such file"),
    ],
)
def test_damaged_folders_are_refused(folder, watch_data, tmp_path, name, damage, complaint):
    shutil.copytree(folder("kl"), tmp_path / "broken")
    damage(tmp_path / "broken" / name)
    with pytest.raises(UsageError, match=complaint):
        open_features(cached("kl", watch_data, tmp_path / "broken"), watch_data)


def test_a_file_of_the_right_size_that_is_no_array_is_refused(folder, watch_data, tmp_path):
    shutil.copytree(folder("kl"), tmp_path / "broken")
    path = tmp_path / "broken" / "train_vqa.pixel_tower.npy"
    path.write_bytes(bytes(path.stat().st_size))
    opened = open_features(cached("kl", watch_data, tmp_path / "broken"), watch_data)
    assert opened is not None
    with pytest.raises(UsageError, match=r"train_vqa\.pixel_tower\.npy: cannot be read"):
        opened.attach({"vqa": range(16)}, "train")
    with pytest.raises(UsageError, match=r"features of 16 records of 'train_caption', which has 3"):
        opened.attach({"caption": range(3)}, "train")
    with pytest.raises(UsageError, match=r"no features of 'validation_vqa'; it has test_caption, test_generation"):
        opened.attach({"vqa": range(16)}, "validation")


def test_cached_towers_and_their_folder_go_together(watch_data):
    with pytest.raises(UsageError, match=r"understanding_tower\.cached=True with config\.data\.features=''"):
        cached("kl", watch_data, Path(), **{"data.features": ""})
    with pytest.raises(UsageError, match=r"config\.data\.features='f' and no tower that is replaced by them"):
        configure("kl", watch_data, **{"data.features": "f"})
    with pytest.raises(UsageError, match=r"cached=True with kind='patch': expected False"):
        config_file.load(runs.TINY, [("data.features", "f"), ("model.understanding_tower.cached", "true")])


def test_the_verb_says_what_is_missing(watch_data, tmp_path, capsys):
    command = ["towers", "features", f"--config={runs.TINY}", f"--out={tmp_path / 'f'}"]
    assert cli.main(command) == 2
    assert "expected a frozen tower whose features can be cached" in capsys.readouterr().err
    siglip = [f"--config.{key}={value}" for key, value in {**COMMON, **KINDS["kl"]}.items()]
    assert cli.main([*command, *siglip]) == 2
    assert "config.data.root='': expected the dataset's directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def flat(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree.leaves_with_path(tree)}
