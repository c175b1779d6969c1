"""A folder of images for each class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from given import imported, picture, stored, turns

from unihetero_jax.data.importers import class_folders
from unihetero_jax.data.importers.class_folders import ClassFolderImporter
from unihetero_jax.data.ingest.importer import Rejected
from unihetero_jax.errors import UsageError


def write(root: Path, *names: str) -> Path:
    for shade, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(shade))
    return root


def records(source: ClassFolderImporter) -> list:
    return [made for unit in source.units() for made in source.records(json.loads(json.dumps(unit)))]


@pytest.mark.parametrize("at_once", [1, 640])
def test_names_of_folders_become_words(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(class_folders, "_IMAGES", at_once)
    source = ClassFolderImporter(str(write(tmp_path, "cat/0.jpg", "red_fox/deep/1.JPG", "red_fox/a.b.png")))
    made = records(source)
    assert [one.key for one in made] == ["cat/0.jpg", "red_fox/a.b.png", "red_fox/deep/1.JPG"]
    assert [one.conversations[1].text for one in made] == ["a photo of a cat", *["a photo of a red fox"] * 2]
    assert [one.images for one in made] == [(picture(n),) for n in (0, 2, 1)]
    assert (made[1].task, json.loads(made[1].attributes)) == ("caption", {"labels": ["red_fox"]})
    assert len(source.units()) == (3 if at_once == 1 else 1)


def test_folders_of_splits(tmp_path):
    root = write(tmp_path / "in", "train/train/0.jpg", "train/bus/1.jpg", "Val/bus/2.jpg", "train/loose.jpg")
    manifest = imported(ClassFolderImporter(str(root)), tmp_path / "data", test_share=1.0)
    assert manifest.counts == {"test_caption": 1, "train_caption": 2}
    assert manifest.rejected == {"no_class": 1}
    assert turns(stored(tmp_path / "data", "test_caption")[0])[1] == ("gpt", "a photo of a bus")
    vehicles = records(ClassFolderImporter(str(write(tmp_path / "vehicles", "train/0.jpg", "bus/1.jpg"))))
    assert [one.conversations[1].text for one in vehicles] == ["a photo of a bus", "a photo of a train"]
    with pytest.raises(UsageError, match="train looks like a split and bus like a class"):
        records(ClassFolderImporter(str(write(tmp_path / "vehicles", "train/steam/0.jpg"))))


def test_what_is_left_out_and_why(tmp_path):
    names = ("cat/0.jpg", "cat/notes.txt", "_/1.jpg", "README.jpg", "c\udce9/2.jpg")
    root = write(tmp_path / "in", *names)
    (write(tmp_path / "elsewhere", "3.jpg") / "3.jpg").rename(tmp_path / "secret.jpg")
    (root / "dog").symlink_to("../elsewhere")
    (root / "cat/secret.jpg").symlink_to("../../secret.jpg")
    found = {one.key: one.reason for one in records(ClassFolderImporter(str(root))) if isinstance(one, Rejected)}
    assert found == {
        "README.jpg": "no_class",
        "_/1.jpg": "empty_text",
        "cat/notes.txt": "not_an_image",
        "cat/secret.jpg": "unsafe_path",
        "c\\udce9/2.jpg": "invalid_utf8",
        "dog": "linked_folder",
    }
    for folder in (tmp_path / "elsewhere", write(tmp_path / "flat", "a.jpg")):
        with pytest.raises(UsageError, match="has no folders of images"):
            records(ClassFolderImporter(str(folder)))


def test_words_of_ones_own(tmp_path):
    root = write(tmp_path / "in", "n01/0.jpg", "n02/1.jpg")
    made = records(ClassFolderImporter(str(root), class_names=("n01 tench, Tinca tinca",), label_text="a {label}"))
    assert made[0].conversations[1].text == "a tench, Tinca tinca"
    assert made[1].reason == "unknown_class"
    with pytest.raises(UsageError, match=r"class_names: 'n01': no words"):
        ClassFolderImporter(str(root), class_names=("n01",))
    with pytest.raises(UsageError, match=r"'n01' is there twice"):
        ClassFolderImporter(str(root), class_names=("n01 a", "n01 b"))
    with pytest.raises(UsageError, match=r"expected \{label\} once"):
        ClassFolderImporter(str(root), label_text="a photo")
