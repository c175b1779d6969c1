"""Damaged and hostile inputs: what is stored is exact; the rest is refused in one line, or counted as rejected."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from given import imported, pairs, picture, stored, turns, write_table, write_tar

from unihetero_jax.data.importers.folder import FolderImporter
from unihetero_jax.data.importers.llava import LlavaImporter
from unihetero_jax.data.importers.tfds import TfdsImporter
from unihetero_jax.data.importers.webdataset import WebDatasetImporter
from unihetero_jax.data.ingest.importer import Importer, Rejected
from unihetero_jax.errors import UsageError

ROOT = Path(__file__).parents[3]
GOOD = "0.jpg,good\n"


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for n in range(4):
        (root / f"{n}.jpg").write_bytes(picture(n))
    return root


def folder(images: Path, content: str | bytes, name: str = "t.csv", **options) -> FolderImporter:
    table = images.parent / name
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return FolderImporter(str(images), (str(table),), **options)


def records(importer: Importer) -> list:
    return [made for unit in importer.units() for made in importer.records(json.loads(json.dumps(unit)))]


def refusal(importer: Importer) -> str:
    with pytest.raises(UsageError) as caught:
        records(importer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def captions(made: list) -> list[str]:
    return [one.conversations[1].text for one in made if not isinstance(one, Rejected)]


def rejected(made: list) -> list[tuple[str, str]]:
    return [(one.key, one.reason) for one in made if isinstance(one, Rejected)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            '0.jpg,"stray\n' + GOOD * 20_000,
            "lines 4 to 20,004: unexpected end of data; expected each quoted cell to be",
        ),
        ('0.jpg,"stray\n' + GOOD * 9 + '0.jpg,"x"\n', r"lines 4 to 14: ',' expected after '\"'"),
        ('0.jpg,"closed" not\n', "line 4: ',' expected after"),
        ("0.jpg\n", "line 4: 1 cells for the 2 columns of the first row; expected"),
        ("0.jpg,a,b\n", "line 4: 3 cells for the 2 columns"),
        ("\n\n0.jpg,a,b\n", "line 6: 3 cells for the 2 columns"),
        ("0.jpg,a\r0.jpg,b\r", "line 4: a carriage return within a line; expected lines that end in"),
    ],
)
def test_a_table_that_csv_cannot_read_names_its_line(images, rows, message):
    found = refusal(folder(images, "image,caption\n" + GOOD + '0.jpg,"two ""quoted"" words"\n' + rows))
    assert found.startswith(f"{images.parent}/t.csv, line")
    assert message.replace("\\", "") in found


def test_lines_are_counted_through_cells_of_several_lines(images):
    content = 'image,caption\n0.jpg,"one\ntwo"\n\n9.jpg,missing\n0.jpg,  \n'
    made = records(folder(images, content))
    assert captions(made) == ["one\ntwo"]
    assert rejected(made) == [("t.csv, line 5", "missing_image"), ("t.csv, line 6", "empty_text")]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_repeated_columns_are_refused(images, name):
    content = "image,caption,caption\n0.jpg,a,b\n".replace(",", "\t" if name == "t.tsv" else ",")
    assert "line 1: the column 'caption' is there twice" in refusal(folder(images, content, name))


def test_encodings_are_named_with_what_to_do(images):
    header = "image,caption\n"
    found = refusal(folder(images, (header + GOOD).encode("utf-16")))
    assert "t.csv is not UTF-8 but UTF-16 or binary: convert it with `iconv -f utf-16 -t utf-8`" in found
    made = records(folder(images, (header + GOOD + "0.jpg,été\n" + GOOD).encode("latin-1")))
    assert captions(made) == ["good", "good"]
    assert rejected(made) == [("t.csv, line 3", "invalid_utf8")]
    bad = next(one for one in made if isinstance(one, Rejected))
    assert bad.detail.startswith("not UTF-8 at character 7: the byte 0xe9 (a Latin-1 file? `iconv -f latin1 -t utf-8`")
    assert "t.csv, line 1: not UTF-8" in refusal(folder(images, "image,légende\n0.jpg,a\n".encode("latin-1")))
    lines = '{"image": "0.jpg", "caption": "été"}\n{"image": "0.jpg", "caption": "good"}\n'.encode("latin-1")
    assert rejected(records(folder(images, lines, "t.jsonl"))) == [("t.jsonl, line 1", "invalid_utf8")]


def line(**fields) -> str:
    return json.dumps({"image": "0.jpg", "caption": "good", **fields}) + "\n"


@pytest.mark.parametrize("depth", [100, 600, 750, 900, 990, 5000])
def test_a_deep_extra_column_is_one_rejected_record(images, depth):
    deep = line()[:-2] + ', "extra": ' + "[" * depth + "]" * depth + "}\n"
    made = records(folder(images, line() + deep + line(), "t.jsonl"))
    assert captions([made[0], made[2]]) == ["good", "good"]
    assert rejected(made) in ([], [("t.jsonl, line 2", "nested_too_deep")], [("t.jsonl, line 2", "invalid_json")])
    assert bool(rejected(made)) == (depth > 100)


def test_a_number_of_5000_digits_is_one_rejected_record(images, tmp_path):
    digits = line()[:-2] + ', "n": ' + "1" * 5000 + "}\n"
    made = records(folder(images, line() + digits + line(), "t.jsonl"))
    assert rejected(made) == [("t.jsonl, line 2", "invalid_json")]
    assert made[1].detail == "an integer of more than 4,300 digits"
    assert len(captions(made)) == 2
    turn = {"conversations": [{"from": "gpt", "value": "text"}]}
    (tmp_path / "a.json").write_text(f'[{json.dumps(turn)},\n {{"n": {"1" * 5000}}},\n {json.dumps(turn)}]')
    made = records(LlavaImporter((f"{tmp_path}/a.json",)))
    assert rejected(made) == [("a.json, line 2 (record 2)", "invalid_json")]
    assert len(made) == 3
    write_tar(tmp_path / "a.tar", [("1.jpg", picture()), ("1.json", b'{"n": ' + b"1" * 5000 + b"}")])
    assert rejected(records(WebDatasetImporter((f"{tmp_path}/a.tar",)))) == [("a/1", "invalid_json")]


@pytest.mark.parametrize("first", ["{", "[1]", '"text"', "null", "\udce9", '{"image": "0.jpg", "capt', "1" * 5000])
def test_a_bad_first_line_of_jsonl_is_one_rejected_record(images, tmp_path, first):
    content = first.encode(errors="surrogateescape") + b"\n" + (line() * 2).encode()
    made = records(folder(images, content, "t.jsonl"))
    assert rejected(made)[0][0] == "t.jsonl, line 1"
    assert captions(made) == ["good", "good"]
    turn = json.dumps({"conversations": [{"from": "gpt", "value": "text"}]}).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(first.encode(errors="surrogateescape") + b"\n" + turn * 3)
    if first != "[1]":
        made = records(LlavaImporter((f"{tmp_path}/a.jsonl",)))
        assert rejected(made)[0][0] == "a.jsonl, line 1 (record 1)"
        assert len(made) == 4


def test_names_and_keys_that_are_not_utf8_are_rejected_records(images, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", errors="surrogateescape") as tar:
        for name, data in (("\udcff.jpg", picture()), ("\udcff.txt", b"x"), *pairs(range(1))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, __import__("io").BytesIO(data))
    manifest = imported(WebDatasetImporter((f"{tmp_path}/a.tar",)), tmp_path / "tar")
    assert (manifest.counts, manifest.rejected) == ({"train_caption": 1}, {"invalid_utf8": 1})
    content = line(id="\ud800") + line(id="a") + line(**{"\ud800": 1, "id": "b"})
    manifest = imported(folder(images, content, "t.jsonl", key_column="id"), tmp_path / "table")
    assert (manifest.counts, manifest.rejected) == ({"train_caption": 2}, {"invalid_utf8": 1})


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_joined_tars_are_told(tmp_path, mode):
    first, second = (write_tar(tmp_path / f"{n}.tar", pairs(range(n, n + 3)), mode=mode) for n in (0, 3))
    (tmp_path / "a.tar").write_bytes(first.read_bytes() + second.read_bytes())
    made = records(WebDatasetImporter((f"{tmp_path}/a.tar",)))
    # The last sample before the mark may lack members: a header that was zeroed looks like it.
    assert captions(made) == ["the picture 0", "the picture 1"]
    assert rejected(made)[0][1] == "broken_tar"
    assert "from byte 20,480 on, behind the mark of the end; tars are joined with `tar -A`" in made[-1].detail


def test_nothing_of_a_damaged_gzip_is_imported(tmp_path):
    """Its checksum is at its end: before that is read, every member may be another."""
    whole = write_tar(tmp_path / "a.tar.gz", pairs(range(10)), mode="w:gz").read_bytes()
    expected = captions(records(WebDatasetImporter((f"{tmp_path}/a.tar.gz",))))
    chance = random.Random(0)
    found = 0
    for _ in range(100):
        data = bytearray(whole)
        data[chance.randrange(10, len(data))] ^= 1 << chance.randrange(8)
        (tmp_path / "b.tar.gz").write_bytes(data)
        importer = WebDatasetImporter((f"{tmp_path}/b.tar.gz",))
        made = list(importer.records({"tar": f"{tmp_path}/b.tar.gz"}))
        found += made[-1:] != [] and isinstance(made[-1], Rejected)
        assert captions(made) in ([], expected)
    assert found > 90  # the rest is in the name that gzip stores
    (tmp_path / "b.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert rejected(list(importer.records({"tar": f"{tmp_path}/b.tar.gz"}))) == [("b/", "broken_tar")]
    assert gzip.decompress(whole)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('[{"a": 1},\n {"a": 2}]\n{"a": 3}', "line 3 (byte 22): text behind the array's end"),
        ('[{"a": 1}]]', "line 1 (byte 10): text behind the array's end"),
        ('[{"a": 1},\n]', "line 2 (byte 11): a record that is not JSON"),
        ('[{"a": 1}\n {"a": 2}]', "line 2 (byte 11): expected a comma between two records"),
        ('[{"a": 1},\n {"a": 2', "line 2 (byte 12): a record that is not JSON"),
        ("[\n" + "[" * 100_000, "line 2 (byte 2): a record that is not JSON: nested too deep"),
    ],
)
def test_what_is_wrong_with_an_array_is_said_with_its_line(tmp_path, content, place):
    (tmp_path / "a.json").write_text(content)
    assert f"a.json, {place}" in refusal(LlavaImporter((f"{tmp_path}/a.json",)))


def test_a_truncated_dataset_info_is_one_line(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"name": "made", "version": "1.0')
    assert f"{tmp_path} cannot be opened by tfds: " in refusal(TfdsImporter(str(tmp_path)))
    (tmp_path / "dataset_info.json").write_text('{"name": ' + "[" * 2000)
    assert f"{tmp_path} cannot be opened by tfds: " in refusal(TfdsImporter(str(tmp_path)))


def test_links_out_of_the_folder_are_refused(images):
    (images.parent / "secret.jpg").write_bytes(picture(9))
    (images.parent / "elsewhere").mkdir()
    (images.parent / "elsewhere" / "a.jpg").write_bytes(picture(8))
    (images / "out.jpg").symlink_to("../secret.jpg")
    (images / "in.jpg").symlink_to("1.jpg")
    (images / "sub").symlink_to("../elsewhere")
    names = ["in.jpg", "out.jpg", "sub/a.jpg", "0.jpg"]
    made = records(folder(images, "".join(line(image=name) for name in names), "t.jsonl"))
    assert [reason for _, reason in rejected(made)] == ["unsafe_path", "unsafe_path"]
    assert "is a link out of" in made[1].detail
    assert [one.images for one in (made[0], made[3])] == [(picture(1),), (picture(0),)]
    link = images.parent / "link"
    link.symlink_to("images")
    assert len(captions(records(folder(link, line(), "t.jsonl")))) == 1, "the folder itself may be a link"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_found_without_decoding_it(images, tmp_path, kind):
    data = picture(5, (64, 64), kind)
    (images / "cut.x").write_bytes(data[: len(data) // 2])
    (images / "flipped.x").write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    names = ["cut.x", "0.jpg", *(["flipped.x"] if kind == "PNG" else [])]
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "a.json").write_text(json.dumps([{"image": name, "conversations": said} for name in names]))
    manifest = imported(LlavaImporter((f"{tmp_path}/a.json",), (str(images),)), tmp_path / "data")
    assert manifest.rejected == {"undecodable": len(names) - 1}
    assert manifest.counts == {"train_caption": 1}


def test_what_is_rejected_later_is_named_by_its_place_too(images, tmp_path, capsys):
    (images / "bad.jpg").write_bytes(b"no image")
    imported(folder(images, "image,caption\n0.jpg,a\nbad.jpg,b\n"), tmp_path / "data")
    assert "rejected as undecodable, the first: t.csv, line 3: 8 bytes, expected one of" in capsys.readouterr().out


def test_an_unknown_column_is_answered_with_the_flag(images):
    found = refusal(folder(images, "Image,words\n0.jpg,a\n"))
    assert "no column for the image: known are image, file_name, " in found
    assert "it has Image, words: name it with --image_column=Image" in found
    found = refusal(folder(images, "image,Question,answer\n0.jpg,a,b\n"))
    assert "name it with --caption_column=NAME, or use --question_column=Question --answer_column=answer" in found


LIMITED = """
import re, sys
from pathlib import Path
from given import imported
from unihetero_jax.data.importers.{module} import {name}
manifest = imported({name}({arguments}), Path(sys.argv[1]))
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(manifest.counts, manifest.rejected, int(peak[1]) // 1024)
"""


@pytest.mark.parametrize("kind", ["jsonl", "llava", "text", "image", "file"])
def test_a_giant_record_is_counted_in_bounded_memory(images, tmp_path, kind):
    giant = b"x" * 268_000_000
    said = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    if kind in ("jsonl", "file"):
        odd = line(caption="@") if kind == "jsonl" else line(image="giant.jpg")
        folder(images, (line() + odd + line()).encode().replace(b"@", giant), "t.jsonl")
        (images / "giant.jpg").write_bytes(giant if kind == "file" else b"")
        given = "folder", "FolderImporter", f"{str(images)!r}, ({f'{tmp_path}/t.jsonl'!r},)"
    elif kind == "llava":
        lines = [json.dumps({"conversations": said, "extra": extra}).encode() + b"\n" for extra in ("", "@", "")]
        (tmp_path / "a.jsonl").write_bytes(b"".join(lines).replace(b"@", giant))
        given = "llava", "LlavaImporter", f"({f'{tmp_path}/a.jsonl'!r},)"
    else:
        other = [("1.jpg", picture()), ("1.txt", giant)] if kind == "text" else [("1.jpg", giant), ("1.txt", b"x")]
        write_tar(tmp_path / "a.tar", [*pairs(range(1)), *other, *pairs(range(2, 3))])
        given = "webdataset", "WebDatasetImporter", f"({f'{tmp_path}/a.tar'!r},)"
    script = LIMITED.format(module=given[0], name=given[1], arguments=given[2])
    path = f"{ROOT}:{Path(__file__).parent}:{Path(__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
    )
    *_, last = done.stdout.splitlines()
    reason = {"text": "member_too_large", "image": "member_too_large", "file": "image_too_large"}
    assert f"2}} {{'{reason.get(kind, 'record_too_large')}': 1}}" in last
    assert int(last.split()[-1]) < 600


def llava(tmp_path, *found: dict) -> list:
    (tmp_path / "a.json").write_text(json.dumps(list(found)))
    return records(LlavaImporter((f"{tmp_path}/a.json",), (f"{tmp_path}/images",)))


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


def test_a_literal_placeholder_is_escaped_where_the_images_are_elsewhere(images, tmp_path):
    made = llava(
        tmp_path,
        {"conversations": said("How do I write <image> in HTML?", "As <image>.")},
        {"image": "0.jpg", "conversations": said("<image>\nWhat does it say?", "It says <image>.")},
        {"image": "0.jpg", "conversations": said("<image>\nIs that an <image> or a <table>?", "The first.")},
        {"image": "0.jpg", "conversations": said("Which is it?\n<image>", "Two.", "And <image>?", "Three.")},
        {"conversations": said("<image>\nWhat is this?", "A lost image.")},
        {"image": "0.jpg", "conversations": said("<image> <image> Which?", "Unclear.")},
    )
    texts = [[turn.text for turn in one.conversations] for one in made[:4]]
    assert texts == [
        ["How do I write < image > in HTML?", "As < image >."],
        ["<image>\nWhat does it say?", "It says < image >."],
        ["<image>\nIs that an < image > or a <table>?", "The first."],
        ["Which is it?\n<image>", "Two.", "And < image >?", "Three."],
    ]
    assert [one.task for one in made[:4]] == ["text", "vqa", "vqa", "vqa"]
    assert [reason for _, reason in rejected(made)] == ["image_count"] * 2
    manifest = imported(LlavaImporter((f"{tmp_path}/a.json",), (str(images),)), tmp_path / "data")
    assert manifest.escaped == 5


def test_a_system_turn_goes_before_the_first_question(images, tmp_path):
    system = {"from": "system", "value": " You describe <image>s in detail. "}
    made = llava(
        tmp_path,
        {"image": "0.jpg", "conversations": [system, *said("<image>\nIs it red?", "no")]},
        {"image": "0.jpg", "conversations": [system, *said("Is it red?", "no")]},
        {"conversations": [{"from": "system", "value": " "}, *said("hello", "hi")]},
        {"conversations": [system, {"from": "gpt", "value": "alone"}]},
        {"conversations": [*said("hello", "hi"), system]},
    )
    assert [[turn.text for turn in one.conversations] for one in made[:4]] == [
        ["You describe < image >s in detail.\n<image>\nIs it red?", "no"],
        ["You describe < image >s in detail.\n<image>\nIs it red?", "no"],
        ["hello", "hi"],
        ["You describe < image >s in detail.", "alone"],
    ]
    assert [one.task for one in made[:2]] == ["vqa", "vqa"], "its words do not make a question a caption"
    assert rejected(made) == [("a.json, line 1 (record 5)", "unknown_speaker")]
    assert made[4].detail.endswith("expected human, user, gpt, assistant, or system first")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("image.png", "txt"), None),
        (("0.jpg", "txt"), None),
        (("0.jpg", "0.txt"), None),
        (("img.webp", "caption.txt"), None),
        (("jpg", "seg.png", "txt", "0.txt"), None),
        (("seg.png", "txt"), "missing_image"),
        (("0.jpg", "1.jpg", "txt"), "several_images"),
        (("jpg", "0.txt", "1.txt"), "several_texts"),
    ],
)
def test_fields_of_webdataset(tmp_path, names, reason):
    contents = {"txt": b"right", "seg.png": b"other"}
    right = [name for name in names if name.endswith(("jpg", "webp", "image.png"))]
    members = [
        (f"a.{name}", contents.get(name, b"other" if "txt" in names and name == "0.txt" else b"right"))
        if name not in right
        else (f"a.{name}", picture(1))
        for name in names
    ]
    write_tar(tmp_path / "a.tar", members)
    (made,) = records(WebDatasetImporter((f"{tmp_path}/a.tar",)))
    if reason:
        assert made.reason == reason
    else:
        assert (made.images, made.conversations[1].text) == ((picture(1),), "right")


def test_what_parquet_cannot_give_is_one_rejected_record(images, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = pyarrow.array([b"good", b"\xff", b"good"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"image": ["0.jpg"] * 3, "caption": texts}), tmp_path / "t.parquet")
    made = records(FolderImporter(str(images), (f"{tmp_path}/t.parquet",)))
    assert captions(made) == ["good", "good"]
    assert rejected(made) == [("t.parquet, row 1", "invalid_row")]
    table = pyarrow.table(
        [pyarrow.array(["0.jpg"]), pyarrow.array(["a"]), pyarrow.array(["b"])], ["image", "text", "text"]
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    assert "the column 'text' is there twice" in refusal(FolderImporter(str(images), (f"{tmp_path}/t.parquet",)))


def test_damage_in_a_page_with_a_checksum_is_found(images, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"image": ["0.jpg"], "caption": ["a caption to be damaged"]})
    parquet.write_table(
        table, tmp_path / "t.parquet", compression="none", write_page_checksum=True, use_dictionary=False
    )
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data.replace(b"to be damaged", b"to be dAmaged"))
    assert "t.parquet, row group 0: " in refusal(FolderImporter(str(images), (f"{tmp_path}/t.parquet",)))


def test_rows_are_stored_once_through_any_stretch(images, tmp_path, monkeypatch):
    from unihetero_jax.data.ingest import tables

    monkeypatch.setattr(tables, "_ROWS", 2)
    rows = [{"image": f"{n % 4}.jpg", "caption": f'"{n}"\n\n,x'} for n in range(9)]
    write_table(tmp_path / "t.csv", rows)
    content = (tmp_path / "t.csv").read_bytes().replace(b'x"\r\n', b'x"\r\n\r\n')
    imported(folder(images, content), tmp_path / "data", workers=1)
    assert [turns(one)[1][1] for one in stored(tmp_path / "data", "train_caption")] == [row["caption"] for row in rows]
