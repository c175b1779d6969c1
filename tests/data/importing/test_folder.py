"""A folder of images and a table, in each of its formats."""

from __future__ import annotations

import json

import pytest
from given import imported, picture, stored, turns, write_table

from unihetero_jax.data.importers.folder import FolderImporter
from unihetero_jax.data.ingest import tables
from unihetero_jax.data.ingest.importer import Rejected
from unihetero_jax.data.ingest.settings import Steps
from unihetero_jax.errors import UsageError

KINDS = ["csv", "tsv", "jsonl", "parquet"]
ROWS = [{"image": f"{n}.jpg", "caption": f'a "picture", {n}\nof äß'} for n in range(8)]


def write_images(root, numbers=range(8)):
    root.mkdir(exist_ok=True)
    for n in numbers:
        (root / f"{n}.jpg").write_bytes(picture(n))
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("folder") / "images")


def records(importer: FolderImporter) -> list:
    return [made for unit in importer.units() for made in importer.records(json.loads(json.dumps(unit)))]


def of(images, tmp_path, rows, kind="jsonl", **options) -> list:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    table = write_table(tmp_path / f"table.{kind}", rows)
    return records(FolderImporter(str(images), (str(table),), **options))


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_become_captions_whatever_the_table(images, tmp_path, monkeypatch, kind, rows_at_once):
    monkeypatch.setattr(tables, "_ROWS", rows_at_once)
    made = of(images, tmp_path, ROWS, kind)
    assert [record.key for record in made] == [f"{n}.jpg" for n in range(8)]
    assert [record.images for record in made] == [(picture(n),) for n in range(8)]
    assert [record.conversations[1].text for record in made] == [row["caption"] for row in ROWS]
    assert {record.task for record in made} == {"caption"}
    importer = FolderImporter(str(images), (str(tmp_path / f"table.{kind}"),))
    # A row group of Parquet, which is read whole, has three rows here.
    most = min(rows_at_once, 3) if kind == "parquet" else rows_at_once
    assert len(importer.units()) == -(-8 // most)


@pytest.mark.parametrize("kind", KINDS)
def test_other_columns_are_attributes(images, tmp_path, kind):
    rows = [{**ROWS[0], "source": "web", "width": 12}]
    (made,) = of(images, tmp_path, rows, kind)
    width = "12" if kind in ("csv", "tsv") else 12
    assert json.loads(made.attributes) == {"source": "web", "width": width}
    assert of(images, tmp_path, rows, kind, attributes=())[0].attributes == ""
    assert json.loads(of(images, tmp_path, rows, kind, attributes=("source",))[0].attributes) == {"source": "web"}


@pytest.mark.parametrize("kind", KINDS)
def test_questions_and_answers(images, tmp_path, kind):
    rows = [{"file_name": "0.jpg", "q": "what <image> is it?", "a": "a clock", "id": "q7"}]
    (made,) = of(images, tmp_path, rows, kind, question_column="q", answer_column="a", key_column="id")
    assert made.task == "vqa"
    assert made.key == "q7"
    assert [turn.text for turn in made.conversations] == ["<image>\nwhat < image > is it?", "a clock"]
    assert made.attributes == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_may_say_who_is_for_testing(images, tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    sets = ["train", "val", "Test", "training", "validation", "train", "other", "train"]
    rows = [{**row, "set": value} for row, value in zip(ROWS, sets, strict=True)]
    table = write_table(tmp_path / f"table.{kind}", rows)
    importer = FolderImporter(str(images), (str(table),), split_column="set")
    manifest = imported(importer, tmp_path / "data", test_share=1.0)
    assert manifest.counts == {"test_caption": 3, "train_caption": 4}
    assert manifest.rejected == {"unknown_split": 1}
    assert [record["key"] for record in stored(tmp_path / "data", "test_caption")] == [b"1.jpg", b"2.jpg", b"4.jpg"]


def test_images_may_be_in_the_parquet_itself(images, tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"image": {"bytes": picture(n), "path": f"{n}.jpg"}, "text": f"number {n}"} for n in range(5)]
    made = of(images, tmp_path, rows, "parquet")
    assert [(record.key, record.images) for record in made] == [(f"{n}.jpg", (picture(n),)) for n in range(5)]
    made = of(images, tmp_path, [{"image": picture(3), "text": "three"}], "parquet")
    assert (made[0].key, made[0].images) == ("table.parquet:0", (picture(3),))


def test_paths_stay_in_the_folder_and_what_is_missing_is_told(images, tmp_path):
    (images.parent / "secret.jpg").write_bytes(picture(9))
    (images / "sub").mkdir(exist_ok=True)
    (images / "device.jpg").symlink_to("/dev/null")
    names = ["0.jpg", "../secret.jpg", str(images / "1.jpg"), "sub/../../secret.jpg", "9.jpg", "sub", "device.jpg", ""]
    names += ["x" * 300 + ".jpg", "a\0b.jpg", None, 3]
    made = of(images, tmp_path, [{"image": name, "caption": "x"} for name in names])
    assert made[0].key == "0.jpg"
    assert [one.reason for one in made[1:]] == [
        *["unsafe_path"] * 3,
        *["missing_image"] * 5,
        "unsafe_path",
        *["missing_image"] * 2,
    ]


def test_bad_rows_are_told_and_the_next_is_good(images, tmp_path):
    lines = ["{", "[1]", '{"image": "0.jpg"}', '{"image": "0.jpg", "caption": " "}', '{"image": "0.jpg", "caption": 3}']
    lines += ["", '{"image": "0.jpg", "caption": "\\ud800"}', '{"image": "0.jpg", "caption": "good"}']
    (tmp_path / "t.jsonl").write_text("\n".join(['{"image": "0.jpg", "caption": "first"}', *lines]))
    manifest = imported(FolderImporter(str(images), (str(tmp_path / "t.jsonl"),)), tmp_path / "data")
    assert manifest.counts == {"train_caption": 2}
    reasons = ["empty_text", "invalid_json", "invalid_row", "invalid_text", "invalid_utf8", "missing_text"]
    assert manifest.rejected == dict.fromkeys(reasons, 1)
    said = [turns(record)[1][1] for record in stored(tmp_path / "data", "train_caption")]
    assert said == ["first", "good"]


def test_bad_csv(images, tmp_path):
    rows = [b"\xef\xbb\xbfimage,caption", b"0.jpg,first", b"", b"3.jpg,\xff\xfe"]
    (tmp_path / "t.csv").write_bytes(b"\r\n".join([*rows, b'4.jpg,"two', b'lines"', b""]))
    manifest = imported(FolderImporter(str(images), (str(tmp_path / "t.csv"),)), tmp_path / "data")
    assert manifest.rejected == {"invalid_utf8": 1}
    found = [(record["key"], turns(record)[1][1]) for record in stored(tmp_path / "data", "train_caption")]
    assert found == [(b"0.jpg", "first"), (b"4.jpg", "two\r\nlines")]
    (tmp_path / "t.csv").write_text('image,caption\n0.jpg,"' + "x" * (1 << 24) + "\n")
    with pytest.raises(UsageError, match=r"t\.csv, line 2: a row of over 16 MiB"):
        FolderImporter(str(images), (str(tmp_path / "t.csv"),)).units()


def test_a_large_image_file_is_not_read(images, tmp_path):
    (images / "large.jpg").write_bytes(b"\0" * 1_000_001)
    table = write_table(tmp_path / "t.csv", [ROWS[0], {"image": "large.jpg", "caption": "x"}])
    importer = FolderImporter(str(images), (str(table),))
    assert imported(importer, tmp_path / "default").rejected == {"undecodable": 1}
    manifest = imported(importer, tmp_path / "data", steps=Steps(max_record_mb=1))
    assert (manifest.counts, manifest.rejected) == ({"train_caption": 1}, {"image_too_large": 1})


def test_the_only_table_of_the_folder_is_taken(tmp_path):
    root = write_images(tmp_path / "x")
    with pytest.raises(UsageError, match=r"x has no table; name it with --table=FILE \(\.csv"):
        FolderImporter(str(root)).units()
    write_table(root / "a.csv", ROWS[:3])
    assert len(records(FolderImporter(str(root)))) == 3
    write_table(root / "b.jsonl", ROWS[3:])
    with pytest.raises(UsageError, match="x has 2 tables"):
        FolderImporter(str(root)).units()
    assert len(records(FolderImporter(str(root), (f"{root}/*.csv", f"{root}/b.jsonl")))) == 8


def test_what_is_wrong_is_named(images, tmp_path):
    table = write_table(tmp_path / "t.csv", ROWS)
    for options, message in (
        ({"caption_column": "captoin"}, r"t\.csv has no column 'captoin' \(caption\); it has image, caption; did you"),
        ({"key_column": "id"}, r"no column 'id' \(key\)"),
        ({"attributes": ("url",)}, r"no column 'url' \(attributes\)"),
        ({"question_column": "q"}, "question_column and answer_column: expected both"),
        ({"prompts": ()}, "no prompts"),
    ):
        with pytest.raises(UsageError, match=message):
            FolderImporter(str(images), (str(table),), **options).units()
    write_table(tmp_path / "u.csv", [{"picture": "0.jpg", "words": "x"}])
    with pytest.raises(
        UsageError,
        match=r"no column for the image: known are image, .*; it has picture, words: .* --image_c",
    ):
        FolderImporter(str(images), (f"{tmp_path}/u.csv",)).units()
    for file, message in (("none.csv", "no such table"), ("a.txt", "whose name ends in")):
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(UsageError, match=message):
            FolderImporter(str(images), (f"{tmp_path}/{file}",)).units()
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UsageError, match=r"empty\.csv names no columns"):
        FolderImporter(str(images), (f"{tmp_path}/empty.csv",)).units()
    with pytest.raises(UsageError, match="no such directory"):
        FolderImporter(f"{tmp_path}/nowhere")


def test_a_wrong_folder_is_refused_at_once(images, tmp_path):
    table = write_table(tmp_path / "t.csv", ROWS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"of the first 8 images none could be used; the first: there is no '0\.jpg'"):
        FolderImporter(f"{tmp_path}/empty", (str(table),)).units()


def test_what_is_no_parquet_is_told(images, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match=r"t\.parquet is not a Parquet file"):
        FolderImporter(str(images), (f"{tmp_path}/t.parquet",)).units()


def test_without_pyarrow_it_says_what_to_install(images, tmp_path, monkeypatch):
    import sys

    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"reading Parquet needs `pip install 'unihetero_jax\[prepare\]'`"):
        FolderImporter(str(images), (f"{tmp_path}/t.parquet",)).units()


def test_nothing_but_rejected_says_why(images, tmp_path):
    made = of(images, tmp_path, [{"image": "0.jpg", "caption": ""}])
    assert [type(one) for one in made] == [Rejected]
    assert made[0].reason == "missing_text"


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_found_by_their_usual_names(images, tmp_path, kind):
    (made,) = of(images, tmp_path, [{"image": "0.jpg", "question": "what?", "answer": "a clock"}], kind)
    assert (made.task, made.conversations[1].text) == ("vqa", "a clock")
    (made,) = of(images, tmp_path, [{"image": "0.jpg", "question": "what?", "answer": "x", "caption": "a clock"}], kind)
    assert (made.task, made.conversations[1].text) == ("caption", "a clock")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_most_frequent_of_several_answers(images, tmp_path, kind):
    texts = (["red", "blue", "blue"], ["a", "b"], [], ["a", ""])
    rows = [{"image": "0.jpg", "question": "what?", "answers": list(one)} for one in texts]
    made = of(images, tmp_path, rows, kind)
    assert [one.conversations[1].text for one in made[:2]] == ["blue", "a"]
    assert [one.reason for one in made[2:]] == ["missing_text"] * 2
    people = [{"answer": answer, "answer_id": n} for n, answer in enumerate(("no", "yes", "yes"))]
    (made,) = of(images, tmp_path, [{"image": "0.jpg", "question": "what?", "answers": people}], kind)
    assert made.conversations[1].text == "yes"
