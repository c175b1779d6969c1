"""Datasets of Hugging Face, written by their own library, as sources without an import."""

from __future__ import annotations

import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image
from test_grain import assert_same, take

from unihetero_jax import data
from unihetero_jax.config import resolve
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.errors import UsageError

datasets = pytest.importorskip("datasets")

TRAIN, TEST = 25, 5


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (number, 2 * number, 0)).save(file, "PNG")
    return file.getvalue()


def captions() -> datasets.DatasetDict:
    """Images as structs, which the library makes of PIL images."""
    rows = [{"image": Image.open(io.BytesIO(png(n))), "text": f"picture {n}"} for n in range(TRAIN + TEST)]
    whole = datasets.Dataset.from_list(rows)
    assert isinstance(whole.features["image"], datasets.Image)
    parts = {"train": range(TRAIN), "test": range(TRAIN, TRAIN + TEST)}
    return datasets.DatasetDict({name: whole.select(numbers) for name, numbers in parts.items()})


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same captions in each form, by name."""
    folder = tmp_path_factory.mktemp("huggingface")
    datasets.disable_progress_bars()
    found = captions()
    found.save_to_disk(folder / "saved")
    (folder / "parquet").mkdir()
    for name, there in (("train", "train"), ("test", "validation")):
        found[name].to_parquet(folder / "parquet" / f"{there}-00000-of-00001.parquet")
    turns = [{"from": "human", "value": "<image><image>\nSame?"}, {"from": "gpt", "value": "yes"}]
    rows = [{"images": [png(n), png(n)], "conversations": turns} for n in range(TRAIN)]
    datasets.Dataset.from_list(rows).save_to_disk(folder / "turns", max_shard_size="2KB")
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def configure(dataset, **source):
    values = {"kind": "huggingface", **source}
    section = {"sources": {"mine": values}, "tokenizer": str(dataset / "tokenizer.model"), "image_size": 32}
    return resolve({"data": {**section, "seq_len": 192}, "train": {"batch_size": 4}})


@pytest.mark.parametrize("form", ["saved", "parquet", "parquet/train-00000-of-00001.parquet"])
def test_captions_are_read_as_their_library_reads_them(places, dataset, form):
    config = configure(dataset, path=str(places / form), caption="text", prompt="What is it?")
    [entry] = data.open_mixture(config).entries
    assert (entry.name, len(entry.records)) == ("mine/caption", TRAIN)
    theirs = captions()["train"]
    for number in range(TRAIN):
        record = entry.records[number]
        turns = [(turn["from"], turn["value"]) for turn in record["conversations"]]
        assert turns == [("human", "<image>\nWhat is it?"), ("gpt", theirs[number]["text"])]
        [image] = record["images"]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))), np.asarray(theirs[number]["image"]))
    if form != "parquet/train-00000-of-00001.parquet":
        assert len(data.open_mixture(config, split="test").entries[0].records) == TEST


def test_several_images_and_turns_reach_the_workers(places, dataset):
    config = configure(dataset, path=str(places / "turns"), image="images")
    samples = data.open_mixture(config)
    assert len(list((places / "turns").glob("*.arrow"))) > 1
    here = take(data.packed_batches(samples, config, workers=0), 5)
    assert_same(take(data.packed_batches(samples, config, workers=2), 5), here)
    assert (here[0][0]["role"] == Role.INPUT).sum() >= 8
    assert not here[-1][1]["skipped"].any()
    assert "arrow" in repr(pickle.dumps(samples.entries[0].records)), "workers map the files"


def test_captions_are_reversed_into_requests(places, dataset):
    config = configure(dataset, path=str(places / "saved"), caption="text", reverse=1.0)
    batch, _ = take(data.packed_batches(data.open_mixture(config), config, workers=0), 1)[0]
    assert (batch["role"] == Role.TARGET).any()
    assert not (batch["role"] == Role.INPUT).any()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": ""}, r"config.data.sources.mine.path='': expected a folder of save_to_disk, or parquet files"),
        ({"path": "nothing"}, "nothing: no such file or folder"),
        (
            {"path": "saved", "caption": "texts"},
            r"train has no column 'texts'; it has image, text; did you mean 'text'",
        ),
        ({"path": "saved"}, r"train has no column 'conversations'; it has image, text"),
        ({"path": "empty"}, "empty: datasets cannot read it: "),
    ],
)
def test_what_is_wrong_is_named(places, dataset, source, message):
    (places / "empty").mkdir(exist_ok=True)
    if source["path"]:
        source = {**source, "path": str(places / source["path"])}
    with pytest.raises(UsageError, match=message):
        data.open_mixture(configure(dataset, **source))


def test_without_the_package_it_is_named(places, dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    from unihetero_jax.data.sources import huggingface

    huggingface._load.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'unihetero_jax\[hf\]'"):
        data.open_mixture(configure(dataset, path=str(places / "saved"), caption="text"))
