"""The driver: whole or absent, the same whoever does the work and however often it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from given import contents, imported, pairs, picture, stored, turns, write_tar

from unihetero_jax.data.importers.webdataset import WebDatasetImporter
from unihetero_jax.data.ingest import layout, write
from unihetero_jax.data.ingest.pieces import part_of
from unihetero_jax.data.ingest.settings import Settings, Steps
from unihetero_jax.data.ingest.write import Pool, import_dataset
from unihetero_jax.data.mixing import Mixture, Source
from unihetero_jax.data.packing.sample import record_sample
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

ROOT = Path(__file__).parents[3]
SPLIT = {"test_share": 0.3, "shard_mb": 0.004}


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Six tars of ten pairs; of the last, two repeat earlier ones and one has a broken picture."""
    root = tmp_path_factory.mktemp("tars")
    for number in range(6):
        write_tar(root / f"{number:02d}.tar", pairs(range(10 * number, 10 * number + 10)))
    again = pairs(range(50, 60))
    again[3:6] = [("again.jpg", picture(7)), ("again.txt", b"the picture 7")]
    again += [("same.jpg", picture(51)), ("same.txt", b"the picture 51"), ("bad.jpg", b"x"), ("bad.txt", b"y")]
    again += [("first.jpg", picture(51)), ("first.txt", b"the picture 51"), ("lone.jpg", picture(1))]
    write_tar(root / "05.tar", again)
    return WebDatasetImporter((f"{root}/{{00..05}}.tar",))


@pytest.fixture(scope="module")
def reference(tars, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "data"
    imported(tars, out, vocabulary_size=600, steps=Steps(drop_duplicates=True), **SPLIT)
    return out


def again(tars, out, workers=1, execute=None, **changes):
    settings = Settings(**{"vocabulary_size": 600, "steps": Steps(drop_duplicates=True), **SPLIT, **changes})
    return import_dataset(tars, out, settings, execute or Pool(workers))


def test_every_record_is_in_its_split_once_and_in_order(tars, reference):
    manifest = load_manifest(reference)
    assert set(manifest.counts) == {"train_caption", "test_caption"}
    keys = {split: [record["key"].decode() for record in stored(reference, split)] for split in manifest.counts}
    for split, own in keys.items():
        assert own == sorted(own)
        assert len(own) == manifest.counts[split]
        assert all(f"{part_of(key, 0.3)}_caption" == split for key in own)
    everything = sorted(keys["train_caption"] + keys["test_caption"])
    expected = [f"{n // 10:02d}/{n:05d}" for n in range(60) if n != 51]
    # Of the three of one content the first is kept, whichever set the others would go to.
    assert everything == sorted([*expected, "05/same"])
    assert manifest.rejected == {"duplicate": 2, "missing_text": 1, "undecodable": 1}


def test_records_are_what_was_in_the_tars(reference):
    for split in ("train_caption", "test_caption"):
        for record in stored(reference, split):
            number = 51 if record["key"] == b"05/same" else int(record["key"].split(b"/")[1])
            assert record["images"] == [picture(number)]
            assert record["task"] == b"caption"
            (human, asked), (gpt, caption) = turns(record)
            assert (human, gpt, caption) == ("human", "gpt", f"the picture {number}")
            assert asked.startswith("<image>\n")


def test_the_manifest_tells_lengths_files_and_where_it_came_from(tars, reference):
    manifest = load_manifest(reference)
    assert set(manifest.files) == set(contents(reference)) - {"manifest.json"}
    for split, lengths in manifest.shards.items():
        files = sorted(reference.glob(f"*-{split}.*"))
        assert len(files) == len(lengths) > 1
        assert sum(lengths) == manifest.counts[split]
        # As even as records of one size can be.
        assert max(lengths) - min(lengths) <= 1
    assert [Path(tar["path"]).name for tar in manifest.provenance["tars"]] == [f"{n:02d}.tar" for n in range(6)]
    assert manifest.arguments["importer"] == "webdataset"
    assert manifest.arguments["drop_duplicates"] is True


def test_tfds_and_the_pipeline_read_it(reference):
    builder = tfds.builder_from_directory(reference)
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert counts == load_manifest(reference).counts
    source = builder.as_data_source("train_caption")
    assert len(source) == counts["train_caption"]
    assert source[0]["images"][0].shape == (8, 12, 3)
    assert [source[n]["key"] for n in range(len(source))] == [r["key"] for r in stored(reference, "train_caption")]
    tokenizer = Tokenizer.load(reference / "tokenizer.model")
    records = Dataset(reference).split("train_caption")
    samples = Mixture([Source("caption", records, 1.0)], seed=0)
    assert {samples[position]["key"] for position in range(len(records))} == {record["key"] for record in records}
    slots = record_sample(samples[0], tokenizer, {Role.INPUT: 4}, 16)
    assert [image.shape for image in slots.images] == [(16, 16, 3)]
    learned = [token for first, last in slots.learned for token in slots.tokens[first:last]]
    assert tokenizer.decode(learned).startswith("the picture ")


def test_files_do_not_depend_on_the_workers_nor_on_the_place(tars, reference, tmp_path):
    again(tars, tmp_path / "elsewhere", workers=3)
    assert contents(tmp_path / "elsewhere") == contents(reference)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


class Killed(BaseException):
    """What a test stops an import with."""


class StopsAfter(Pool):
    """Does so many jobs, and is killed in the middle of the next, or just after what it wrote."""

    def __init__(self, jobs: int):
        super().__init__(1)
        self.jobs = jobs
        self.done = 0

    def __call__(self, task, jobs, progress, done, inherited):
        def note(number, result):
            if self.done == self.jobs:
                raise Killed
            self.done += 1
            done(number, result)

        super().__call__(task, jobs, progress, note, inherited)


def test_killed_after_any_job_it_goes_on_and_gives_the_same_files(tars, reference, tmp_path):
    out = tmp_path / "data"
    total, kills = 6 + len(list(reference.glob("*array_record*"))), 0
    while True:
        # Two jobs count at each start; what the third wrote is kept too, though nobody heard of it.
        execute = StopsAfter(2)
        try:
            again(tars, out, execute=execute)
            break
        except Killed:
            kills += 1
            # Nothing that was finished is done twice: each start does three jobs more.
            assert kills <= total // 3
            assert not out.exists()
            assert (tmp_path / "data.incomplete").is_dir()
    assert contents(out) == contents(reference)
    assert not (tmp_path / "data.incomplete").exists()
    assert kills >= 2


@pytest.mark.parametrize("moment", ["write_metadata", "add_tokenizer", "write_manifest", "load_manifest", "rmtree"])
def test_killed_at_the_end_it_goes_on(tars, reference, tmp_path, monkeypatch, moment):
    def stop(*arguments, **named):
        raise Killed

    place = write.shutil if moment == "rmtree" else write
    with monkeypatch.context() as patched:
        patched.setattr(place, moment, stop)
        with pytest.raises(Killed):
            again(tars, tmp_path / "data")
    again(tars, tmp_path / "data")
    assert contents(tmp_path / "data") == contents(reference)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_was_copied_into_shards_is_freed(tars, tmp_path):
    with pytest.raises(Killed):
        again(tars, tmp_path / "data", execute=StopsAfter(6 + 2))
    left = {path.name[:6] for path in (tmp_path / "data.incomplete" / "pieces").glob("*-test_caption.records")}
    assert left
    assert len(left) < 6


def test_an_unfinished_import_is_not_mixed_with_another(tars, tmp_path):
    with pytest.raises(Killed):
        again(tars, tmp_path / "data", execute=StopsAfter(1))
    with pytest.raises(UsageError, match=r"incomplete holds an import that was begun with resize=0, not 4"):
        again(tars, tmp_path / "data", steps=Steps(drop_duplicates=True, resize=4))
    with pytest.raises(UsageError, match=r"begun with tars\[5\]=.*05\.tar.*, not nothing;"):
        again(WebDatasetImporter((tars.tars[0].replace("05}", "04}"),)), tmp_path / "data")
    # A tokenizer is the last thing that is made.
    assert again(tars, tmp_path / "data", vocabulary_size=700).arguments["vocabulary_size"] == 700


def test_a_complete_import_is_left_alone(tars, reference, capsys):
    before = {path: path.stat().st_mtime_ns for path in reference.iterdir()}
    again(tars, reference)
    assert "complete already: 60 records" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"built with shard_mb=0\.004, not 5"):
        again(tars, reference, shard_mb=5.0)
    with pytest.raises(UsageError, match="imported with caption_key"):
        again(WebDatasetImporter(tars.tars, caption_key="text"), reference)
    assert {path: path.stat().st_mtime_ns for path in reference.iterdir()} == before


def test_other_peoples_files_are_left_alone(tars, tmp_path):
    (tmp_path / "data.incomplete").mkdir()
    (tmp_path / "data.incomplete" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is in the way"):
        again(tars, tmp_path / "data")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds no dataset of ours"):
        again(tars, tmp_path / "other")
    assert len(list(tmp_path.rglob("thesis.txt"))) == 2


def test_an_import_of_nothing_is_an_error_and_leaves_nothing(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.jpg", picture(1)), ("2.txt", b"x")])
    with pytest.raises(UsageError, match="no record was imported; rejected: missing_image 1, missing_text 1"):
        imported(WebDatasetImporter((f"{tmp_path}/a.tar",)), tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_the_tokenizer_learns_the_texts_and_spares_room_for_words(tars, reference, tmp_path):
    tokenizer = Tokenizer.load(reference / "tokenizer.model")
    assert len(tokenizer.encode("the picture 7")) < 8
    # More characters than a vocabulary of this size has room for.
    strange = [chr(0x4E00 + n) for n in range(400)]
    members = [
        m for n, c in enumerate(strange) for m in ((f"{n}.jpg", picture(1)), (f"{n}.txt", f"a cat {c}".encode()))
    ]
    write_tar(tmp_path / "a.tar", members)
    imported(WebDatasetImporter((f"{tmp_path}/a.tar",)), tmp_path / "data", vocabulary_size=512)
    tokenizer = Tokenizer.load(tmp_path / "data" / "tokenizer.model")
    assert len(tokenizer.encode("a cat")) <= 2
    assert tokenizer.decode(tokenizer.encode("a cat " + strange[300])) == "a cat " + strange[300]


def test_a_tokenizer_can_be_given(tars, reference, tmp_path):
    given = reference / "tokenizer.model"
    imported(tars, tmp_path / "data", tokenizer=str(given))
    assert (tmp_path / "data" / "tokenizer.model").read_bytes() == given.read_bytes()
    with pytest.raises(UsageError, match=r"00\.tar is no tokenizer"):
        imported(tars, tmp_path / "other", tokenizer=tars.tars[0].replace("{00..05}", "00"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "my data"}, "name='my data'"),
        ({"test_share": 1.5}, "test_share=1.5"),
        ({"shard_mb": 0.0}, "shard_mb=0"),
        ({"vocabulary_size": 100}, "vocabulary_size=100"),
    ],
)
def test_impossible_settings_are_named(change, named):
    with pytest.raises(UsageError, match=named):
        Settings(**change)


def test_a_literal_placeholder_is_escaped_and_counted(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.jpg", picture(1)), ("1.txt", b"an <image> of <image>")])
    manifest = imported(WebDatasetImporter((f"{tmp_path}/a.tar",)), tmp_path / "data")
    assert manifest.escaped == 1
    (record,) = stored(tmp_path / "data", "train_caption")
    assert turns(record)[1] == ("gpt", "an < image > of < image >")


def test_duplicates_are_the_later_ones_however_many_are_looked_at_at_once():
    generator = np.random.default_rng(0)
    pieces = [generator.integers(0, 4, (count, 2)).astype(np.uint64) for count in (5, 0, 9, 7)]
    seen, expected = set(), []
    for piece in pieces:
        expected.append([])
        for index, value in enumerate(map(tuple, piece.tolist())):
            if value in seen:
                expected[-1].append(index)
            seen.add(value)
    for at_once in (1000, 8, 3):
        found = layout.duplicates([len(piece) for piece in pieces], lambda n: pieces[n], at_once)
        assert [indices.tolist() for indices in found] == expected


def test_shards_hold_every_record_once_and_are_of_one_size():
    generator = np.random.default_rng(1)
    sizes = {unit: generator.integers(0, 100, count).astype(np.uint32) for unit, count in ((0, 50), (3, 1), (4, 200))}
    made = layout.shards(list(sizes), lambda unit: sizes[unit], 1000)
    listed = [(s.unit, index) for shard in made for s in shard for index in range(s.start, s.stop)]
    assert listed == [(unit, index) for unit, own in sizes.items() if own.any() for index in range(len(own))]
    weights = [sum(int(sizes[s.unit][s.start : s.stop].sum()) for s in shard) for shard in made]
    assert max(weights) <= 1100
    assert min(weights) >= 800


def processes_with(path: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) == os.fspath(path) for link in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_killed_with_its_workers_at_work_it_goes_on(tmp_path):
    for number in range(10):
        members = []
        for n in range(6 * number, 6 * number + 6):
            members += [(f"{n}.jpg", picture(n, (400, 300))), (f"{n}.txt", f"number {n}".encode())]
        write_tar(tmp_path / f"{number}.tar", members)
    command = [sys.executable, "-m", "unihetero_jax", "data", "import", "webdataset", f"{tmp_path}/{{0..9}}.tar"]
    command += ["--resize=100", "--shard_mb=0.05", "--workers=2", "--vocabulary_size=512"]
    importer = WebDatasetImporter((f"{tmp_path}/{{0..9}}.tar",))
    imported(importer, tmp_path / "whole", steps=Steps(resize=100), shard_mb=0.05, vocabulary_size=512)
    with (tmp_path / "stderr").open("w") as stderr:
        run = subprocess.Popen([*command, f"--out={tmp_path}/data"], cwd=ROOT, stderr=stderr)
    noted = tmp_path / "data.incomplete" / "pieces"
    try:
        deadline = time.monotonic() + 60
        while len(list(noted.glob("??????.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert not (tmp_path / "data").exists()
    deadline = time.monotonic() + 5
    while processes_with(tmp_path / "data.lock") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes_with(tmp_path / "data.lock")
    kept = {path.name: path.stat().st_ino for path in noted.glob("??????.json")}
    assert 2 <= len(kept) < 10
    done = subprocess.run([*command, f"--out={tmp_path}/data"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "data: 60 records (train_caption 60), 0 rejected" in done.stdout
    assert f"continuing: {len(kept)} of 10 pieces are complete" in done.stdout
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert (tmp_path / "stderr").read_text() == ""


def test_a_full_disk_is_one_clear_line(tars, tmp_path):
    script = (
        "import resource\n"
        "from unihetero_jax.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))\n"
        f"main(['data', 'import', 'webdataset', {tars.tars[0]!r}, '--out={tmp_path}/data', '--workers=1'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"unihetero: error: cannot write {tmp_path}/data"), done
    assert "File too large; what is done is kept, and the same command continues from there" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_worker_that_dies_is_told_with_its_job(tars, tmp_path, monkeypatch):
    # As where memory runs out, or where a decoder crashes on a picture.
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if any('pieces' in argument for argument in sys.orig_argv):\n"
        "    from unihetero_jax.data.importers import webdataset\n"
        "    webdataset.open_tar = lambda path: os._exit(9)\n"
    )
    with pytest.raises(RuntimeError, match=r"ended early, with exit code 9; its job was .*\.tar"):
        again(tars, tmp_path / "data", workers=2)


def test_an_input_that_vanishes_is_one_clear_line(tmp_path):
    write_tar(tmp_path / "a.tar", pairs(range(2)))
    importer = WebDatasetImporter((f"{tmp_path}/a.tar",))

    class Removes(Pool):
        def __call__(self, *arguments):
            (tmp_path / "a.tar").unlink()
            super().__call__(*arguments)

    with pytest.raises(UsageError, match=r"cannot read .*a\.tar: No such file"):
        import_dataset(importer, tmp_path / "data", Settings(), Removes(1))


def test_workers_import_neither_jax_nor_grain_nor_tensorflow(tars, tmp_path):
    script = (
        "import sys\n"
        "from unihetero_jax.cli import main\n"
        f"line = ['data', 'import', 'webdataset', {tars.tars[0]!r}, '--out={tmp_path}/data', '--workers=1']\n"
        "assert main(line) == 0\n"
        "print('imported:', {'tensorflow', 'jax', 'grain'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "imported: set()" in done.stdout, done.stderr
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["counts"] == {"train_caption": 62}
