"""COCO's captions: what becomes of every annotation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from given import imported, picture, stored, turns

from unihetero_jax.data.importers.coco import CocoImporter
from unihetero_jax.data.ingest import json_stream
from unihetero_jax.data.ingest.importer import Rejected
from unihetero_jax.errors import UsageError

IMAGES = [{"id": 7 + n, "file_name": f"{n}.jpg", "width": 12} for n in range(4)]
ANNOTATIONS = [{"image_id": 7 + n % 4, "id": n, "caption": f"é {n} <image>\n"} for n in range(10)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for n in range(4):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(picture(n))
    return tmp_path / "images"


def importer(root: Path, content: object, name: str = "captions.json", **options: object) -> CocoImporter:
    file = root.parent / name
    file.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return CocoImporter((str(file),), **{"image_roots": (str(root),), **options})


def records(source: CocoImporter) -> list:
    return [made for unit in source.units() for made in source.records(json.loads(json.dumps(unit)))]


@pytest.mark.parametrize("first", ["images", "annotations"])
@pytest.mark.parametrize("unit_bytes", [1, 250_000, 64_000_000])
def test_each_annotation_is_a_caption_of_its_image(root, monkeypatch, first, unit_bytes):
    monkeypatch.setattr(json_stream, "UNIT_BYTES", unit_bytes)
    monkeypatch.setattr(json_stream, "_CHUNK", 50)
    rest = {"images": IMAGES, "annotations": ANNOTATIONS}
    source = importer(root, {"info": {"images": [1]}, first: rest.pop(first), "licenses": [], **rest, "n": 1.5})
    made = records(source)
    assert len(source.units()) == {1: 10, 250_000: 4, 64_000_000: 1}[unit_bytes]
    assert [one.conversations[1].text for one in made] == [f"é {n} < image >" for n in range(10)]
    assert [one.images for one in made] == [(picture(n % 4),) for n in range(10)]
    assert [one.key for one in made] == [f"{n % 4}.jpg" for n in range(10)], "so that no image is in both sets"
    assert {one.task for one in made} == {"caption"}
    assert json.loads(made[5].attributes) == {"id": 5, "image_id": 8}
    assert made[5].place == "captions.json, line 1 (annotation 6)"


def test_what_is_wrong_with_a_record_is_told_and_the_next_is_good(root):
    odd = [
        *({"image_id": 99, "caption": "x"}, {"caption": "x"}, {"image_id": True, "caption": "x"}, {"image_id": 1}, 3),
        *({"image_id": 7}, {"image_id": 7, "caption": " "}, {"image_id": 7, "caption": ["x"]}),
        *({"image_id": 7, "caption": "\ud800"}, {"image_id": [7], "caption": "x"}, {"image_id": 7.0, "caption": "x"}),
        *({"image_id": 50, "caption": "x"}, {"image_id": 51, "caption": "x"}, {"image_id": 52, "caption": "x"}),
    ]
    images = [*IMAGES, {"id": 50, "file_name": "../secret.jpg"}, {"id": 51}, {"id": 52, "file_name": "9.jpg"}, "image"]
    content = json.dumps({"images": images, "annotations": [ANNOTATIONS[0], *odd, ANNOTATIONS[1]]}, indent=0)
    made = records(importer(root, content))
    assert [one.reason for one in made[1:-1]] == [
        *["unknown_image"] * 4,
        *("invalid_record", "missing_text", "empty_text", "invalid_text", "invalid_utf8"),
        *["unknown_image"] * 2,
        *("unsafe_path", "unknown_image", "missing_image"),
    ]
    assert [isinstance(one, Rejected) for one in (made[0], made[-1])] == [False, False]
    assert made[1].key.startswith("captions.json, line ")
    assert made[1].key.endswith("(annotation 2)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"line 1 \(byte 0\): expected an object, got '\['"),
        ("{}", "has no images"),
        ('{"images": [], "annotations": []}', "has no images"),
        ({"images": IMAGES}, "has no annotations"),
        ({"images": IMAGES, "annotations": [{"image_id": 7, "bbox": [1]}]}, "has annotations without captions"),
        ({"images": [*IMAGES, {**IMAGES[0], "file_name": "1.jpg"}], "annotations": ANNOTATIONS}, "id 7 is there twice"),
        ('{"images": [],\n "images": []}', r"line 2 \(byte \d+\): the key 'images' is there twice"),
        ('{"images": [{"id": 1}', r"the file ends where a comma between two records was expected"),
        ('{"images": [{"id": 1}]\n', r"line 2 .*the file ends where a comma or the object's end was expected"),
        ('{"images": [{"id": 1}]}\n}', r"line 2 .*text behind the object's end"),
        ('{"images" [{"id": 1}]}', "expected a colon behind a key"),
        ('{3: [{"id": 1}]}', "expected a key, got 3"),
        ('{"a": [' + "[" * 100_000, "nested too deep"),
    ],
)
def test_files_of_another_kind_are_refused_with_the_place(root, content, message):
    with pytest.raises(UsageError, match=rf"captions\.json.*{message}") as caught:
        records(importer(root, content))
    assert "\n" not in str(caught.value)


def test_files_for_the_test_set(root, tmp_path):
    test = importer(root, {"images": IMAGES[:1], "annotations": ANNOTATIONS[:1]}, "val.json").files
    source = importer(root, {"images": IMAGES, "annotations": ANNOTATIONS[1:4]}, test_files=test)
    manifest = imported(source, tmp_path / "data", test_share=1.0)
    assert manifest.counts == {"test_caption": 1, "train_caption": 3}
    assert turns(stored(tmp_path / "data", "test_caption")[0])[1] == ("gpt", "é 0 < image >")


def test_a_wrong_root_is_refused_at_once(root, tmp_path):
    source = importer(root, {"images": IMAGES, "annotations": ANNOTATIONS}, image_roots=(str(tmp_path),))
    with pytest.raises(UsageError, match=r"of the first 10 images none.*'0\.jpg'.*expected --image_root=DIR"):
        source.units()


def test_a_file_that_pycocotools_made(root, tmp_path):
    coco = pytest.importorskip("pycocotools.coco").COCO()
    coco.dataset = {"info": {}, "images": IMAGES, "annotations": ANNOTATIONS}
    coco.createIndex()
    results = coco.loadRes([{"image_id": 8, "caption": "one"}, {"image_id": 10, "caption": "three"}])
    made = records(importer(root, results.dataset))
    assert [(one.key, one.conversations[1].text) for one in made] == [("1.jpg", "one"), ("3.jpg", "three")]
