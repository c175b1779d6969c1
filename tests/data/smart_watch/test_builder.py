import dataclasses
import fcntl
import io
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
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from unihetero_jax.commands.arguments import Parser
from unihetero_jax.commands.data import add_arguments
from unihetero_jax.data.records.manifest import fingerprint
from unihetero_jax.data.smart_watch import (
    POSITIONS,
    TASKS,
    Attributes,
    draw,
    record,
)
from unihetero_jax.data.smart_watch import (
    write_shards as shards,
)
from unihetero_jax.data.smart_watch.builder import (
    SmartWatch,
    SmartWatchArguments,
    SmartWatchConfig,
    build,
    is_complete,
    load_manifest,
)
from unihetero_jax.data.smart_watch.tfds_builder import features, serialize, to_example
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

ROOT = Path(__file__).parents[3]
SPLITS = [f"{part}_{task}" for part in ("train", "test") for task in TASKS]
# More than two shards, so that several workers share the work.
SMALL = {"num_images": 600, "test_images": 20, "image_size": 16}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("built") / "watch"
    build(directory, **SMALL, seed=3, workers=1)
    return directory


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def read(directory, split):
    source = tfds.builder_from_directory(directory).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return [source[i] for i in range(len(source))]


def test_tfds_opens_it_and_reads_back_the_records(built):
    builder = tfds.builder_from_directory(built)
    assert builder.info.features["image"].shape == (16, 16, 3)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        split: 600 if split.startswith("train") else 20 for split in SPLITS
    }
    for split in SPLITS:
        part, task = split.split("_")
        for offset, stored in list(enumerate(read(built, split)))[:: 1 if part == "test" else 97]:
            index = offset + (600 if part == "test" else 0)
            expected = record(3, index, task, 16, "paper")
            turns = stored["conversations"]
            assert stored["index"] == index
            assert stored["task"].decode() == task
            assert stored["image"] == expected["image"]
            assert [text.decode() for text in turns["from"]] == [turn["from"] for turn in expected["conversations"]]
            assert [text.decode() for text in turns["value"]] == [turn["value"] for turn in expected["conversations"]]
            assert [kind.decode() for kind in stored["kinds"]] == expected["kinds"]
            shown = draw(Attributes.from_json(stored["attributes"]), 16)
            assert (np.asarray(Image.open(io.BytesIO(stored["image"]))) == np.asarray(shown)).all()


def test_train_and_test_share_no_image(built):
    numbers = {split: [stored["index"] for stored in read(built, split)] for split in SPLITS}
    for task in TASKS:
        assert numbers[f"train_{task}"] == list(range(600))
        assert numbers[f"test_{task}"] == list(range(600, 620))


@pytest.mark.parametrize("task", TASKS)
def test_serialised_records_are_what_tfds_writes(task):
    made = record(0, 4, task, 16, "paper")
    connector = features(16)
    by_tfds = connector.serialize_example(connector.encode_example(to_example(made)))
    assert tf_example_pb2.Example.FromString(serialize(made)) == tf_example_pb2.Example.FromString(by_tfds)


def test_files_do_not_depend_on_the_workers(built, tmp_path):
    build(tmp_path / "watch", **SMALL, seed=3, workers=3)
    assert len(list(built.glob("*train_vqa*"))) > 2
    assert contents(tmp_path / "watch") == contents(built)
    assert [path.name for path in tmp_path.iterdir()] == ["watch"]


def test_seed_and_questions_change_the_records(built, tmp_path):
    arguments = {**SMALL, "num_images": 4, "test_images": 1, "workers": 1}
    for name, changes in {"base": {}, "seed": {"seed": 1}, "all": {"questions": "all"}}.items():
        build(tmp_path / name, **{**arguments, **changes})
    first = {name: read(tmp_path / name, "train_vqa")[0] for name in ("base", "seed", "all")}
    assert first["base"]["image"] != first["seed"]["image"]
    assert first["base"]["image"] == first["all"]["image"]
    assert len(first["all"]["kinds"]) == 5


@pytest.mark.parametrize(("told", "least", "most"), [(0.0, 0.0, 0.0), (0.25, 0.2, 0.3)])
def test_what_is_withheld_is_not_learned_by_reading_alone(built, tmp_path, told, least, most):
    directory = tmp_path / "watch"
    build(directory, **SMALL, seed=3, withheld="weather", told=told, workers=1)
    asked = [b"weather" in example["kinds"] for example in read(built, "train_vqa")]
    assert sum(asked) > 0.3 * len(asked)
    left = [b"weather" in example["kinds"] for example in read(directory, "train_vqa")]
    assert least * sum(asked) <= sum(left) <= most * sum(asked)
    words = [b"sunny", b"cloudy", b"raining"]
    named = [
        any(word in example["conversations"]["value"][1] for word in words)
        for example in read(directory, "train_caption")
    ]
    assert least * 0.5 <= np.mean(named) <= most * 0.6
    # The same pictures are asked for in the same words, and tested on the same questions.
    for split in ("train_generation", "test_vqa", "test_caption"):
        assert [example["conversations"]["value"] for example in read(directory, split)] == [
            example["conversations"]["value"] for example in read(built, split)
        ]


def test_a_corner_can_be_withheld_while_the_other_is_told(tmp_path):
    build(tmp_path / "watch", **SMALL, seed=3, withheld="weather_pos", workers=1)
    kinds = {kind for example in read(tmp_path / "watch", "train_vqa") for kind in example["kinds"]}
    assert kinds == {b"weather", b"time", b"battery", b"battery_pos"}
    captions = [example["conversations"]["value"][1] for example in read(tmp_path / "watch", "train_caption")]
    corners = [name.encode() for name in POSITIONS]
    assert max(sum(caption.count(name) for name in corners) for caption in captions) == 1
    asked = [example["conversations"]["value"][0] for example in read(tmp_path / "watch", "train_generation")]
    assert max(sum(request.count(name) for name in corners) for request in asked) == 2


def test_manifest_and_tokenizer_describe_the_directory(built):
    manifest = load_manifest(built)
    assert manifest.arguments == {**SMALL, "seed": 3, "questions": "paper", "vocabulary_size": 1024}
    assert manifest.counts["train_caption"] == 600
    assert len(manifest.shards["train_vqa"]) == len(list(built.glob("*train_vqa*"))) == 3
    assert {split: sum(lengths) for split, lengths in manifest.shards.items()} == manifest.counts
    assert set(manifest.files) == set(contents(built)) - {"manifest.json"}
    assert is_complete(built)
    tokenizer = Tokenizer.load(built / "tokenizer.model")
    for stored in read(built, "test_caption"):
        for value in stored["conversations"]["value"]:
            assert tokenizer.decode(tokenizer.encode(value.decode())) == value.decode()


def test_the_same_build_again_changes_nothing(built, capsys):
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    build(built, **SMALL, seed=3)
    assert "complete already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before


def test_other_arguments_are_refused_by_name(built):
    with pytest.raises(UsageError, match="built with seed=3, not 4"):
        build(built, **SMALL, seed=4)
    with pytest.raises(UsageError, match="built with vocabulary_size=1024, not 600"):
        build(built, **SMALL, seed=3, vocabulary_size=600)
    assert is_complete(built)


def test_other_peoples_files_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds no dataset of ours"):
        build(tmp_path / "mine", **SMALL)
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(UsageError, match="is no directory"):
        build(tmp_path / "file", **SMALL)
    (tmp_path / "new.incomplete").mkdir()
    (tmp_path / "new.incomplete" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.txt is in the way"):
        build(tmp_path / "new", **SMALL)
    assert len(list(tmp_path.rglob("thesis.txt"))) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_images": 0}, "num_images=0"),
        ({"test_images": -1}, "test_images=-1"),
        ({"image_size": 8}, "image_size=8"),
        ({"image_size": 5000}, "image_size=5000"),
        ({"seed": -1}, "seed=-1"),
        ({"questions": "al"}, "did you mean 'all'"),
        ({"workers": 0}, "workers=0"),
        ({"vocabulary_size": 20}, "vocabulary_size=20"),
        ({"withheld": "wether"}, "did you mean 'weather'"),
        ({"withheld": "weather,time"}, "'time' cannot be withheld; expected weather, battery, weather_pos or"),
        ({"withheld": "weather", "told": 2.0}, "told=2.0"),
        ({"told": 0.5}, "told=0.5 without withheld"),
    ],
)
def test_impossible_arguments_are_named(tmp_path, change, named):
    with pytest.raises(UsageError, match=named):
        build(tmp_path / "watch", **{**SMALL, "workers": 1, **change})
    assert not list(tmp_path.iterdir())


def test_a_manifest_without_the_lengths_of_its_shards_still_loads(tmp_path):
    build(tmp_path / "watch", 4, 1, 16, workers=1)
    path = tmp_path / "watch" / "manifest.json"
    now = load_manifest(tmp_path / "watch")
    fields = json.loads(path.read_text())
    for name in ("shards", "rejected", "escaped", "provenance"):
        del fields[name]
    path.write_text(json.dumps(fields))
    before = load_manifest(tmp_path / "watch")
    assert before.shards == {}
    assert fingerprint(before) == fingerprint(now)


def test_a_damaged_dataset_names_the_file(tmp_path):
    target = tmp_path / "watch"
    build(target, 4, 1, 16, workers=1)
    manifest = (target / "manifest.json").read_text()
    shard = next(target.glob("*train_vqa*"))
    data = shard.read_bytes()

    shard.write_bytes(data[:-1])
    assert not is_complete(target)
    with pytest.raises(UsageError, match=shard.name):
        build(target, 4, 1, 16)
    shard.unlink()
    with pytest.raises(UsageError, match=f"{shard.name} is missing"):
        load_manifest(target)
    shard.write_bytes(data)
    assert is_complete(target)

    for broken in (manifest[: len(manifest) // 2], "[]", "{}", json.dumps({**json.loads(manifest), "files": 3})):
        (target / "manifest.json").write_text(broken)
        with pytest.raises(UsageError, match=r"manifest\.json is truncated"):
            load_manifest(target)
    (target / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        load_manifest(target)
    with pytest.raises(UsageError, match="not a directory"):
        load_manifest(tmp_path / "nowhere")


def workers_of(directory):
    """Processes that have the lock of a directory open."""
    lock = os.fspath(directory) + ".lock"
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) == lock for link in (process / "fd").iterdir()):
                found.add(int(process.name))
        except OSError:
            continue
    return found


def test_a_killed_build_leaves_no_worker_and_nothing_complete(tmp_path):
    target = tmp_path / "watch"
    # Each of its shards takes several seconds: a worker that finishes one first is noticed.
    script = (
        "from unihetero_jax.data.smart_watch.builder import build\n"
        f"build({os.fspath(target)!r}, 200_000, 10, 224, workers=2)"
    )
    with (tmp_path / "stderr").open("w") as stderr:
        parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=stderr)
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("watch.incomplete/*array_record*"))) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(workers_of(target)) == 3
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 2
    while (left := workers_of(target)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
    assert (tmp_path / "stderr").read_text() == ""
    assert not target.exists()
    assert not is_complete(target)
    assert not is_complete(tmp_path / "watch.incomplete")
    assert list((tmp_path / "watch.incomplete").iterdir())

    build(target, 4, 1, 16, workers=1)
    assert is_complete(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stderr", "watch"]


def test_two_builds_of_one_directory_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr("unihetero_jax.data.records.building._LOCK_TIMEOUT_S", 0.2)
    with open(tmp_path / "watch.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another build is writing"):
            build(tmp_path / "watch", 4, 1, 16, workers=1)
    build(tmp_path / "watch", 4, 1, 16, workers=1)
    assert is_complete(tmp_path / "watch")


def test_a_failing_worker_stops_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "__name__", "unihetero_jax.no_such_module")
    with pytest.raises(RuntimeError, match="worker process ended early, with exit code 1"):
        build(tmp_path / "watch", **SMALL, workers=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_clear_line(tmp_path, workers):
    script = (
        "import resource\n"
        "from unihetero_jax.data.smart_watch.builder import build\n"
        "from unihetero_jax.errors import UsageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))\n"
        "try:\n"
        f"    build({os.fspath(tmp_path / 'watch')!r}, 600, 10, 64, workers={workers})\n"
        "except UsageError as error:\n"
        "    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"cannot write {tmp_path}/watch: "), done
    assert done.stdout.count("\n") == 1
    assert "File too large" in done.stdout
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_shards_cover_the_images_once_whatever_their_number(monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 50_000)
    arguments = SmartWatchArguments(1000, 37, 16)
    planned = shards.plan(arguments)
    for part in ("train", "test"):
        own = [shard for shard in planned if shard.part == part]
        assert [i for shard in own for i in range(shard.start, shard.stop)] == list(arguments.indices(part))
        assert [(shard.number, shard.count) for shard in own] == [(i, len(own)) for i in range(len(own))]
    longest = max(planned, key=lambda shard: shard.stop - shard.start)
    for task in TASKS:
        images = range(longest.start, longest.stop)
        assert sum(len(serialize(record(0, i, task, 16, "paper"))) for i in images) <= 50_000


def test_the_tfds_builder_writes_the_same_records(tmp_path):
    config = SmartWatchConfig("tiny", arguments=SmartWatchArguments(6, 2, 16, seed=3))
    builder = SmartWatch(data_dir=tmp_path, config=config, file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("train_vqa", decoders={"image": tfds.decode.SkipDecoding()})
    # TFDS shuffles when it writes.
    stored = {source[i]["index"]: source[i] for i in range(len(source))}
    assert sorted(stored) == list(range(6))
    assert all(stored[i]["image"] == record(3, i, "vqa", 16, "paper")["image"] for i in range(6))
    assert dataclasses.replace(config.arguments, seed=4).indices("test") == range(6, 8)


def test_neither_tensorflow_nor_jax_is_imported(tmp_path):
    script = (
        "import sys\n"
        "from unihetero_jax.commands.arguments import Parser\n"
        "from unihetero_jax.commands.data import add_arguments\n"
        "assert not {'jax', 'tensorflow_datasets', 'PIL'} & set(sys.modules), 'the help must start fast'\n"
        "parser = Parser()\n"
        "add_arguments(parser)\n"
        "for line in (['build', 'smart_watch', '--out=w', '--num_images=3', '--test_images=1', '--image_size=16'],\n"
        "             ['inspect', 'w', '--grid=grid.png']):\n"
        "    arguments = parser.parse_args(line)\n"
        "    assert arguments.run(arguments) == 0\n"
        "import tensorflow_datasets as tfds\n"
        "assert tfds.builder_from_directory('w').as_data_source('train_vqa')[0]['image'].shape == (16, 16, 3)\n"
        "print('imported:', {'tensorflow', 'jax', 'grain'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "imported: set()" in done.stdout, done.stderr


def test_command_line_defaults_and_errors(tmp_path):
    parser = Parser()
    add_arguments(parser)
    arguments = parser.parse_args(["build", "smart_watch", f"--out={tmp_path}/w"])
    assert (arguments.num_images, arguments.image_size, arguments.questions) == (2000, 224, "paper")
    arguments = parser.parse_args(["build", "smart_wach", f"--out={tmp_path}/w"])
    with pytest.raises(UsageError, match=r"unknown dataset 'smart_wach'.*did you mean 'smart_watch'"):
        arguments.run(arguments)
    arguments = parser.parse_args(["build", "smart_watch", f"--out={tmp_path}/w", "--num_images=-5"])
    with pytest.raises(UsageError, match="num_images=-5"):
        arguments.run(arguments)
    for line, message in (
        (["build", "smart_watch", "--out=w", "--seed=0", "--seed=0"], "--seed: given twice"),
        (["build", "smart_watch", f"--out={__file__}"], "is a file: expected a directory"),
        (["inspect", f"{tmp_path}/nowhere"], "nowhere: no such directory"),
        (["inspect", str(tmp_path), f"--grid={tmp_path}/missing/grid.png"], "there is no directory"),
    ):
        with pytest.raises(UsageError, match=message):
            parser.parse_args(line)
