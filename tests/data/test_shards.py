"""Shards: records by number through few open files; what is missing or damaged, and a manifest that is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from array_record.python import array_record_module

from unihetero_jax.data.records import shards
from unihetero_jax.data.records.example import serialize
from unihetero_jax.data.records.manifest import Manifest, describe_files, write_manifest
from unihetero_jax.data.records.record import Record, Turn
from unihetero_jax.data.records.shards import Dataset, OpenShards
from unihetero_jax.errors import UsageError

COUNTS = [5, 0, 7, 1, 4]


def write(folder: Path, counts: list[int], said: list[int] | None = None, total: int | None = None) -> Path:
    """A dataset of numbered records; its manifest may say something else of their number."""
    folder.mkdir()
    number = 0
    for shard, count in enumerate(counts):
        path = folder / f"d-train_text.array_record-{shard:05d}-of-{len(counts):05d}"
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _ in range(count):
            writer.write(serialize(Record(str(number), (), (Turn("gpt", "x" * 50),), "text")))
            number += 1
        writer.close()
    said = counts if said is None else said
    counted = {"train_text": sum(said) if total is None else total}
    write_manifest(folder, Manifest("d", {}, counted, describe_files(folder), shards={"train_text": said}))
    return folder


def keys(split) -> list[str]:
    return [split[number]["key"].decode() for number in range(len(split))]


@pytest.mark.parametrize("most", [1, 2, 99])
def test_every_record_is_found_whichever_shard_it_is_in(tmp_path, most):
    split = Dataset(write(tmp_path / "d", COUNTS), OpenShards(most)).split("train_text")
    assert len(split) == sum(COUNTS)
    assert keys(split) == [str(number) for number in range(sum(COUNTS))]
    assert keys(split) == [str(number) for number in range(sum(COUNTS))]
    for number in (-1, sum(COUNTS)):
        with pytest.raises(IndexError):
            split[number]


def test_no_more_files_are_open_than_allowed(tmp_path):
    split = Dataset(write(tmp_path / "d", [3] * 40), OpenShards(4)).split("train_text")
    before = len(os.listdir("/proc/self/fd"))
    for start in range(3):
        for number in range(start, len(split), 3):
            split[number]
            assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_nothing_is_opened_before_it_is_read(tmp_path, monkeypatch):
    root = write(tmp_path / "d", [3] * 10)
    opened = []
    real = array_record_module.ArrayRecordReader
    monkeypatch.setattr(
        shards.array_record_module,
        "ArrayRecordReader",
        lambda path, *a, **k: opened.append(path) or real(path, *a, **k),
    )
    split = Dataset(root).split("train_text")
    assert not opened
    split[7]
    assert [Path(path).name for path in opened] == ["d-train_text.array_record-00002-of-00010"]


def test_a_manifest_without_shards_is_counted(tmp_path):
    root = write(tmp_path / "d", [3, 4])
    path = root / "manifest.json"
    values = json.loads(path.read_text())
    del values["shards"]
    path.write_text(json.dumps(values))
    assert keys(Dataset(root).split("train_text")) == [str(number) for number in range(7)]


def test_a_manifest_that_lies_is_named(tmp_path):
    root = write(tmp_path / "a", [3, 4], said=[4, 3])
    with pytest.raises(UsageError, match=r"00000-of-00002 holds 3 records, and the manifest beside it says 4"):
        Dataset(root).split("train_text")[0]
    for name, said, total in (("b", [3], 3), ("c", [3, 4], 8)):
        with pytest.raises(UsageError, match=r"its manifest has \d records of 'train_text', and \d in 2 shards"):
            Dataset(write(tmp_path / name, [3, 4], said, total)).split("train_text")


def test_what_is_missing_is_named(tmp_path):
    root = write(tmp_path / "d", [3, 4])
    with pytest.raises(UsageError, match=r"no split 'train_texts'; it has train_text; did you mean 'train_text'"):
        Dataset(root).split("train_texts")
    dataset = Dataset(root).split("train_text")
    shard = root / "d-train_text.array_record-00001-of-00002"
    content = shard.read_bytes()
    shard.unlink()
    assert dataset[0]["key"] == b"0"
    with pytest.raises(OSError, match="no such file, though the manifest lists it"):
        dataset[5]
    with pytest.raises(UsageError, match="is missing, though"):
        Dataset(root)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"has [\d,]+ bytes, manifest.json says"):
        Dataset(root)


def test_damage_costs_its_record_and_is_not_tried_again(tmp_path, monkeypatch):
    root = write(tmp_path / "d", [30])
    shard = root / "d-train_text.array_record-00000-of-00001"
    content = bytearray(shard.read_bytes())
    place = content.index(b"x" * 50)
    content[place] ^= 1
    shard.write_bytes(content)
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: pytest.fail("damage does not pass"))
    split = Dataset(root).split("train_text")
    bad = 0
    for number in range(30):
        try:
            found = split[number]["key"].decode()
        except OSError:
            bad += 1
        else:
            assert found == str(number)
    assert bad == 1


def test_what_fails_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    split = Dataset(write(tmp_path / "d", [3])).split("train_text")
    real, failures = (
        array_record_module.ArrayRecordReader,
        [RuntimeError("Input/output error"), OSError("stale handle")],
    )

    def flaky(*arguments, **options):
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    slept = []
    monkeypatch.setattr(shards.time, "sleep", slept.append)
    monkeypatch.setattr(shards.array_record_module, "ArrayRecordReader", flaky)
    assert split[2]["key"] == b"2"
    assert slept == [0.1, 0.5]
    failures += [RuntimeError("Input/output error")] * 9
    split._shards._readers.clear()
    with pytest.raises(OSError, match="Input/output error"):
        split[2]
