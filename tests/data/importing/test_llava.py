"""LLaVA's format: what becomes of every kind of record, in whatever stretches its file is read."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from stored import stored

from unihetero_jax.commands.arguments import Parser
from unihetero_jax.commands.data import add_arguments
from unihetero_jax.data.importers.llava import LlavaImporter
from unihetero_jax.data.ingest import json_stream
from unihetero_jax.data.ingest.importer import Rejected
from unihetero_jax.data.ingest.phrases import read_phrases
from unihetero_jax.data.records.example import parse, serialize
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.record import Record
from unihetero_jax.errors import UsageError


def said(human: str, gpt: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


CAPTION = {
    "id": "000000033471",
    "image": "coco/a.jpg",
    "conversations": said("<image>\nProvide a brief description of the given image.", "A red bus – très grand."),
}
QUESTION = {"id": 7, "image": "coco/b.jpg", "conversations": said("What colour is it?\n<image>", "red")}
TEXT = {"id": "chat", "conversations": said("Write a poem.", "Roses are red.") * 20}
TWO = {"image": ["coco/a.jpg", "gqa/c.png"], "conversations": said("<image> <image> What differs?", "The bus.")}
DRAWN = {"image": "coco/a.jpg", "task": "generation", "conversations": said("Draw a bus.", "Here it is.\n<image>")}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("coco/a.jpg", "coco/b.jpg", "gqa/c.png"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"bytes of {name}".encode())
    return tmp_path / "images"


def importer(images: Path, records: object, lines: bool = False, **options: object) -> LlavaImporter:
    file = images.parent / ("records.jsonl" if lines else "records.json")
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=1, ensure_ascii=False)
    file.write_text(text, encoding="utf-8")
    return LlavaImporter([str(file)], **{"image_roots": [str(images)], **options})


def everything(source: LlavaImporter) -> list[Record | Rejected]:
    # Through JSON, as the driver hands units to its workers.
    units = json.loads(json.dumps(source.units()))
    return [made for unit in units for made in source.records(unit)]


@pytest.mark.parametrize("lines", [False, True])
def test_each_kind_of_record(images, lines):
    made = everything(importer(images, [CAPTION, QUESTION, TEXT, TWO, DRAWN], lines))
    assert [record.task for record in made] == ["caption", "vqa", "text", "vqa", "generation"]
    assert [record.key for record in made] == [f"00/{number:09d}" for number in range(5)]
    assert made[0].conversations[1].text == "A red bus – très grand."
    assert made[0].attributes == '{"id": "000000033471"}'
    assert made[2].images == ()
    assert len(made[2].conversations) == 40
    assert made[3].images == (b"bytes of coco/a.jpg", b"bytes of gqa/c.png")
    assert parse(serialize(made[3]))["images"] == list(made[3].images)


def test_speakers_by_other_names_and_the_image_that_is_not_mentioned(images):
    turns = [
        {"from": "gpt", "value": "…as I said."},
        {"from": "user", "value": "What is it?"},
        {"from": "assistant", "value": "A bus."},
    ]
    (record,) = everything(importer(images, [{"image": "coco/a.jpg", "conversations": turns}]))
    assert record.conversations == (("human", "<image>\nWhat is it?"), ("gpt", "A bus."))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conversations": said("<image><image> Which?", "b")}, "image_count"),
        ({"image": ["coco/a.jpg", "coco/b.jpg"], "conversations": said("Which?", "b")}, "image_count"),
        ({"image": None}, "image_count"),
        ({"image": "coco/none.jpg"}, "missing_image"),
        ({"image": "coco"}, "missing_image"),
        ({"image": "../secret.jpg"}, "unsafe_path"),
        ({"image": "coco/../../secret.jpg"}, "unsafe_path"),
        ({"image": "/etc/hostname"}, "unsafe_path"),
        ({"image": 3}, "invalid_image"),
        ({"image": "coco/empty.jpg"}, "empty_image"),
        ({"conversations": []}, "no_conversation"),
        ({"conversations": "hello"}, "no_conversation"),
        ({"conversations": [{"from": "human", "value": None}]}, "invalid_turn"),
        ({"conversations": [{"from": ["human"], "value": "<image>"}]}, "unknown_speaker"),
        ({"conversations": said("<image>", " ")}, "no_answer"),
        ({"conversations": said("<image>", "half of an emoji \ud83d")}, "invalid_utf8"),
    ],
)
def test_what_is_rejected_and_why(images, change, reason):
    (images / "coco/empty.jpg").write_bytes(b"")
    (images.parent / "secret.jpg").write_bytes(b"not for you")
    records = [QUESTION, {**QUESTION, **change}, CAPTION]
    file = images.parent / "records.json"
    file.write_text(json.dumps(records))
    good, bad, after = everything(LlavaImporter([str(file)], [str(images)]))
    assert (good.task, bad.reason, after.task) == ("vqa", reason, "caption")
    assert bad.key == "records.json, line 1 (record 2)"


def test_a_broken_line_is_one_record(images):
    file = images.parent / "records.jsonl"
    lines = [json.dumps(QUESTION), '{"id": "torn', "", json.dumps(CAPTION), "[" * 100_000, '"text"']
    file.write_bytes("\n".join(lines).encode() + b'\n{"conversations": [{"from": "gpt", "value": "\xff"}]}\n')
    made = everything(LlavaImporter([str(file)], [str(images)]))
    assert [getattr(one, "reason", one.__class__.__name__) for one in made] == [
        *("Record", "invalid_json", "Record", "invalid_json", "invalid_record", "invalid_utf8"),
    ]


def test_which_exchanges_are_captions(images):
    asked = {
        "<image>\nDescribe the image concisely.": "caption",
        "Explain the various aspects of the image before you.\n<image>": "caption",
        "<image>": "caption",
        "<image>\nRelay a brief, clear account of the picture.\nNo more.": "caption",
        "What is in the photo?\n<image>": "caption",
        "<image>\nIs there a bus? Answer with one word.": "vqa",
        "<image>\nPlease provide a short description for this region: [0.1, 0.2, 0.3, 0.4].": "vqa",
        "<image>\nWhat is the man in the photo doing?": "vqa",
    }
    records = [{"image": "coco/a.jpg", "conversations": said(human, "A bus.")} for human in asked]
    assert [record.task for record in everything(importer(images, records))] == list(asked.values())
    assert {record.task for record in everything(importer(images, records, caption_words=""))} == {"caption"}
    longer = {**CAPTION, "conversations": CAPTION["conversations"] + said("And?", "No more.")}
    named = [{**CAPTION, "task": "vqa"}, {**QUESTION, "task": "caption"}, {**longer, "task": "caption"}, longer]
    assert [record.task for record in everything(importer(images, named))] == ["vqa", "caption", "vqa", "vqa"]


def test_captions_are_turned_round(images):
    records = [{**CAPTION, "id": number} for number in range(40)] + [QUESTION]
    plain = everything(importer(images, records))
    both = everything(importer(images, records, generation="both"))
    instead = everything(importer(images, records, generation="instead"))
    assert Counter(record.task for record in both) == {"caption": 40, "generation": 40, "vqa": 1}
    assert [record for record in both if record.task != "generation"] == plain
    assert [record for record in both if record.task != "caption"] == instead
    assert [record.key for record in instead] == [record.key for record in plain]
    human, gpt = instead[0].conversations
    assert "A red bus – très grand." in human.text
    assert "<image>" not in human.text
    assert gpt.text.endswith("\n<image>")
    assert instead[0].images == plain[0].images
    assert len({record.conversations[0].text for record in instead[:40]}) > 5, "one phrasing for all"


def test_requests_of_ones_own(images):
    file = images.parent / "requests.txt"
    file.write_text("\nPaint {caption}\n  {caption}\\nNow draw.  \n")
    phrases = read_phrases(file, "{caption}")
    assert phrases == ("Paint {caption}", "{caption}\nNow draw.")
    source = importer(images, [CAPTION] * 20, generation="instead", requests=phrases)
    texts = {record.conversations[0].text for record in everything(source)}
    assert texts == {phrase.replace("{caption}", "A red bus – très grand.") for phrase in phrases}
    assert source.provenance()["requests"] == list(phrases)
    file.write_text("Paint {caption}\nDraw it\n")
    with pytest.raises(UsageError, match=r"requests\.txt, line 2: expected \{caption\} once"):
        read_phrases(file, "{caption}")


@pytest.mark.parametrize("lines", [False, True])
def test_units_change_nothing_but_who_does_the_work(images, lines, monkeypatch):
    records = [{**(CAPTION if n % 3 else TEXT), "id": n, "note": 'é{[]}"\\, ' * (n % 50)} for n in range(300)]
    source = importer(images, records, lines)
    whole = everything(source)
    monkeypatch.setattr(json_stream, "UNIT_BYTES", 700_000)
    monkeypatch.setattr(json_stream, "_CHUNK", 1000)
    assert len(source.units()) > 20
    assert everything(source) == whole
    assert len(whole) == 300
    monkeypatch.setattr(json_stream, "UNIT_BYTES", 20_000)
    assert len(importer(images, [TEXT] * 50, lines).units()) > 3, "text takes room too"


def test_a_long_array_is_scanned_in_little_memory(images, monkeypatch):
    path = importer(images, [{**TEXT, "id": n} for n in range(2000)]).files[0]
    monkeypatch.setattr(json_stream, "_CHUNK", 1 << 16)
    tracemalloc.start()
    count = sum(b"image" not in found.data for found in json_stream.scan(path, "array"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < os.path.getsize(path) / 8, f"{peak:,} bytes for a file of {os.path.getsize(path):,}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"a": 2', r"line 1 \(byte 11\): a record that is not JSON"),
        ('[{"a": 1}, ', r"line 1 \(byte 11\): the file ends where a record was expected"),
        ('[{"a": 1} {"a": 2}]', r"line 1 \(byte 10\): expected a comma between two records"),
        ('{"a":\n 1}', r"expected a JSON array of records, or a record"),
        ("", r"expected a JSON array of records, or a record"),
        ("[]", r"has no records"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=rf"x\.json.*{message}"):
        LlavaImporter([str(file)]).units()


def test_a_wrong_root_is_said_at_once(images, tmp_path):
    source = importer(images, [CAPTION] * 30, image_roots=[str(tmp_path)])
    with pytest.raises(UsageError, match=r"of the first 20 images none.*'coco/a\.jpg'.*expected --image_root=DIR"):
        source.units()
    several = importer(images, [CAPTION, TWO], image_roots=[str(tmp_path), str(images)])
    assert [len(record.images) for record in everything(several)] == [1, 2]


def test_options_that_are_impossible(tmp_path):
    with pytest.raises(UsageError, match=r"generation='bth'.*did you mean 'both'"):
        LlavaImporter(["a.json"], generation="bth")
    with pytest.raises(UsageError, match=r"image_root=.*nowhere: no such directory"):
        LlavaImporter(["a.json"], image_roots=[f"{tmp_path}/nowhere"])
    with pytest.raises(UsageError, match=r"cannot read .*a\.json: No such file"):
        LlavaImporter([f"{tmp_path}/a.json"]).units()
    with pytest.raises(UsageError, match=r"'Draw it'.*expected \{caption\} once"):
        LlavaImporter(["a.json"], requests=["Draw it"])


def test_from_the_command_line_to_the_shards(images, tmp_path):
    for name in ("coco/a.jpg", "coco/b.jpg", "gqa/c.png"):
        Image.new("RGB", (9, 7), (len(name), 0, 99)).save(images / name)
    source = importer(images, [CAPTION, QUESTION, TEXT, TWO, DRAWN, {**QUESTION, "image": "coco/none.jpg"}])
    requests = tmp_path / "requests.txt"
    requests.write_text("Paint: {caption}")
    parser = Parser()
    add_arguments(parser)
    line = ["import", "llava", *source.files, f"--image_root={images}", f"--out={tmp_path}/data", "--generation=both"]
    arguments = parser.parse_args([*line, f"--requests={requests}", "--workers=1", "--vocabulary_size=0"])
    assert arguments.run(arguments) == 0
    manifest = load_manifest(tmp_path / "data")
    assert manifest.counts == {"train_caption": 1, "train_generation": 2, "train_text": 1, "train_vqa": 2}
    assert manifest.rejected == {"missing_image": 1}
    said = [record["conversations"]["value"][0].decode() for record in stored(tmp_path / "data", "train_generation")]
    assert said == ["Paint: A red bus – très grand.", "Draw a bus."]
    assert [len(record["images"]) for record in stored(tmp_path / "data", "train_vqa")] == [1, 2]
