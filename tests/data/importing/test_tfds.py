"""Datasets that TFDS prepared: which of their features make a record, and that TensorFlow is not needed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from given import prepare
from PIL import Image
from stored import stored

from unihetero_jax.commands.arguments import Parser
from unihetero_jax.commands.data import add_arguments
from unihetero_jax.data.importers import tfds as importing
from unihetero_jax.data.importers.tfds import TfdsImporter
from unihetero_jax.data.ingest.importer import Rejected
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.record import Record
from unihetero_jax.errors import UsageError


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (10 * shade, 0, 255)).save(file, "JPEG")
    return file.getvalue()


def everything(source: TfdsImporter) -> list[Record | Rejected]:
    units = json.loads(json.dumps(source.units()))
    return [made for unit in units for made in source.records(unit)]


LABEL = tfds.features.ClassLabel(names=["fire_truck", "tench"])
IMAGE = tfds.features.Image(shape=(None, None, 3))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    examples = [{"image": io.BytesIO(jpeg(n)), "label": n % 2, "id": str(n)} for n in range(20)]
    held_out = [{"image": io.BytesIO(jpeg(25)), "label": -1, "id": "x"}]
    features = {"image": IMAGE, "label": LABEL, "id": tfds.features.Text()}
    return prepare(tmp_path_factory.mktemp("labelled"), features, {"train": examples, "test": held_out})


def test_label_names_become_words(labelled):
    made = everything(TfdsImporter(str(labelled)))
    assert sorted(record.images[0] for record in made) == sorted(jpeg(n) for n in range(20))
    for record in made:
        number = next(n for n in range(20) if record.images[0] == jpeg(n))
        assert record.conversations[1] == ("gpt", f"a photo of a {('fire truck', 'tench')[number % 2]}")
        assert record.conversations[0].text.startswith("<image>\n")
        assert record.task == "caption"
        assert json.loads(record.attributes) == {"labels": [("fire_truck", "tench")[number % 2]]}
    assert [record.key for record in made] == [f"train/{n:09d}" for n in range(20)]
    assert len({record.conversations[0].text for record in made}) > 3
    other = everything(TfdsImporter(str(labelled), label_text="{label}!"))
    assert {record.conversations[1].text for record in other} == {"fire truck!", "tench!"}


def test_splits_become_parts_and_withheld_labels_are_rejected(labelled, monkeypatch):
    whole = everything(TfdsImporter(str(labelled)))
    monkeypatch.setattr(importing, "UNIT_BYTES", 3000)
    source = TfdsImporter(str(labelled), splits=["train[:50%]", "train[50%:]"], test_splits=["test"])
    units = source.units()
    assert len(units) > 4
    assert [unit["part"] for unit in units] == ["train"] * (len(units) - 1) + ["test"]
    made = everything(source)
    assert [record.images for record in made[:-1]] == [record.images for record in whole]
    assert len({record.key for record in made}) == 21
    assert (made[-1].key, made[-1].reason) == ("test/000000000", "no_label")


def test_texts_a_record_each(tmp_path):
    features = {
        "image": IMAGE,
        "image/filename": tfds.features.Text(),
        "captions": tfds.features.Sequence({"id": tfds.features.Scalar(np.int64), "text": tfds.features.Text()}),
    }
    examples = [
        {"image": io.BytesIO(jpeg(1)), "captions": [{"id": 3, "text": "a <image> tag"}, {"id": 4, "text": "zwei"}]},
        {"image": io.BytesIO(jpeg(2)), "captions": [{"id": 5, "text": " "}]},
        {"image": io.BytesIO(jpeg(3)), "captions": []},
    ]
    directory = prepare(tmp_path, features, {"train": [{**one, "image/filename": "x"} for one in examples]})
    made = everything(TfdsImporter(str(directory)))
    records = [one for one in made if isinstance(one, Record)]
    assert [one.conversations[1].text for one in records] == ["a < image > tag", "zwei"]
    assert [one.images for one in records] == [(jpeg(1),)] * 2
    assert [one.key.rpartition("/")[2] for one in records] == ["0", "1"]
    assert [one.reason for one in made if isinstance(one, Rejected)] == ["empty_text"] * 2


def test_what_is_ambiguous_is_asked_for(tmp_path):
    features = {
        "left": IMAGE,
        "right": IMAGE,
        "mask": tfds.features.LabeledImage(labels=3, shape=(None, None, 1)),
        "label": LABEL,
        "title": tfds.features.Text(),
    }
    one = {"left": io.BytesIO(jpeg(1)), "right": io.BytesIO(jpeg(2)), "mask": io.BytesIO(jpeg(3)), "label": 1}
    directory = str(prepare(tmp_path, features, {"train": [{**one, "title": "ein Fisch"}]}))
    for options, message in (
        ({}, "expected --image_feature=NAME, as there is not exactly one: left, right"),
        ({"image_feature": "rigth"}, "no image_feature 'rigth'.*did you mean 'right'"),
        ({"image_feature": "left"}, "the texts title and the labels label: expected one of them as --text_feature"),
        ({"image_feature": "left", "text_feature": "label"}, "no text_feature 'label': expected one of title"),
    ):
        with pytest.raises(UsageError, match=message):
            TfdsImporter(directory, **options).units()
    (named,) = everything(TfdsImporter(directory, image_feature="right", text_feature="title"))
    assert (named.images, named.conversations[1].text) == ((jpeg(2),), "ein Fisch")
    (named,) = everything(TfdsImporter(directory, image_feature="left", label_feature="label"))
    assert (named.images, named.conversations[1].text) == ((jpeg(1),), "a photo of a tench")


def test_what_is_no_prepared_dataset(labelled, tmp_path, monkeypatch):
    def refused(message: str, dataset: str = str(labelled), **options: Any) -> None:
        with pytest.raises(UsageError, match=message):
            TfdsImporter(dataset, **options).units()

    refused(r"has no dataset_info\.json.*did you mean .*made/1\.0\.0\?", str(labelled.parent))
    refused(r"no split 'validation': it has test, train", splits=["validation"])
    refused("expected one of them", text_feature="id", label_feature="label")
    refused(r"label_text='dog': expected \{label\} once", label_text="dog")
    refused("tfds has no prepared dataset 'nowhere'", "name:nowhere")
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in labelled.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    shard = copied / "made-train.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    writer.write(b"\xff\xff")
    writer.close()
    with pytest.raises(UsageError, match="has 1 records, the dataset's description says 20"):
        everything(TfdsImporter(str(copied)))
    shard.write_bytes(b"torn")
    with pytest.raises(UsageError, match=r"array_record-00000-of-00001.*cannot be read"):
        everything(TfdsImporter(str(copied)))
    shard.unlink()
    for function in ("provenance", "units"):
        with pytest.raises(
            UsageError, match=r"cannot read .*made-train.*which the dataset's description lists: No such"
        ):
            getattr(TfdsImporter(str(copied)), function)()
    info = copied / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    refused(
        r"is stored as tfrecord: expected array_record.*tfds convert_format --out_dir=DIR --dataset_version_dir=",
        str(copied),
    )


def test_neither_tensorflow_nor_jax_is_imported(labelled):
    script = (
        "import sys\n"
        "from unihetero_jax.data.importers.tfds import TfdsImporter\n"
        f"source = TfdsImporter({str(labelled)!r})\n"
        "made = [record for unit in source.units() for record in source.records(unit)]\n"
        "print(len(made), 'imported:', {'tensorflow', 'jax'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "20 imported: set()" in done.stdout, done.stderr


def test_from_the_command_line_to_the_shards(labelled, tmp_path):
    parser = Parser()
    add_arguments(parser)
    line = ["import", "tfds", str(labelled), "--split=train[:12]", "--test_split=train[12:]", "--label_text={label}"]
    arguments = parser.parse_args([*line, f"--out={tmp_path}/data", "--workers=1", "--vocabulary_size=0"])
    assert arguments.run(arguments) == 0
    assert load_manifest(tmp_path / "data").counts == {"test_caption": 8, "train_caption": 12}
    (image,) = stored(tmp_path / "data", "test_caption")[0]["images"]
    assert image in [jpeg(n) for n in range(20)]
