"""Checkpoints and inputs that are not the run's own are named, and never used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import runs

from unihetero_jax.checkpoint import restore
from unihetero_jax.checkpoint.identity import RUN
from unihetero_jax.data.records.manifest import load_manifest, sampled_digest
from unihetero_jax.errors import UsageError
from unihetero_jax.run.workdir import identify, refuse_datasets

STEPS = ("checkpoint.every_steps=2", "optimizer.warmup_steps=1")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """A run with checkpoints of steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("identity") / "run"
    runs.finish(runs.start(runs.train_command(workdir, dataset, "train.steps=4", *STEPS)))
    return workdir


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "copy")


def checkpoints(workdir: Path) -> Path:
    return workdir / restore.CHECKPOINTS


def test_a_moved_run_is_the_same_run(copy):
    assert restore.find_step(copy, None) == 4
    assert restore.find_step(copy, 2) == 2


def test_a_renamed_checkpoint_is_refused(copy):
    (checkpoints(copy) / "4").rename(checkpoints(copy) / "40")
    with pytest.raises(UsageError, match="it is a checkpoint of step 4, renamed or copied"):
        restore.find_step(copy, 40)
    assert restore.find_step(copy, None) == 2


def test_exchanged_checkpoints_are_refused(copy):
    place = checkpoints(copy)
    for old, new in (("2", "x"), ("4", "2"), ("x", "4")):
        (place / old).rename(place / new)
    with pytest.raises(UsageError, match="no good checkpoint"):
        restore.find_step(copy, None)


def test_a_checkpoint_of_another_run_is_refused(copy):
    own = json.loads((copy / RUN).read_text())["id"]
    (copy / RUN).write_text((copy / RUN).read_text().replace(own, "0" * 32))
    with pytest.raises(UsageError, match=f"another run \\({own}"):
        restore.find_step(copy, 4)


def test_training_says_where_it_continues_and_what_a_new_length_does_to_the_learning_rate(copy, dataset, tmp_path):
    moved = shutil.copytree(dataset, tmp_path / "moved")
    longer = runs.train_command(copy, moved, "train.steps=12", *STEPS)
    said = runs.finish(runs.start(longer))
    assert "continuing from step 4 of 12" in said
    assert "config.train.steps is 12 and was 4: on its cosine schedule the learning rate jumps from" in said


def test_another_content_of_the_same_size_is_refused(tmp_path):
    identify(tmp_path, {"dataset a": "1", "tokenizer.model": "2"})
    identify(tmp_path, {"dataset a": "1", "tokenizer.model": "2", "dataset b": "3"})
    with pytest.raises(UsageError, match=r"another content of dataset a, tokenizer\.model"):
        identify(tmp_path, {"dataset a": "x", "tokenizer.model": "y"})


def test_exchanged_shards_change_what_a_source_holds(dataset, tmp_path):
    place = shutil.copytree(dataset, tmp_path / "data")
    before = sampled_digest(place, load_manifest(place))
    assert sampled_digest(dataset, load_manifest(dataset)) == before, "a dataset that only moved"
    shard = next(path for path in sorted(place.iterdir()) if "array_record" in path.name)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert sampled_digest(place, load_manifest(place)) != before


def test_another_jax_is_told(tmp_path, caplog):
    identify(tmp_path, {})
    stored = json.loads((tmp_path / RUN).read_text())
    stored["versions"]["jax"] = "0.4.1"
    (tmp_path / RUN).write_text(json.dumps(stored))
    identify(tmp_path, {})
    assert "continues a run of 0.4.1" in caplog.text


def test_a_dataset_is_no_workdir(dataset):
    with pytest.raises(UsageError, match="is a dataset: expected a directory for the run"):
        refuse_datasets(dataset)


def test_an_unknown_level_of_verification_is_the_full_one(copy):
    values = json.loads((copy / restore.CONFIG).read_text())
    values["checkpoint"]["verify"] = "foo"
    (copy / restore.CONFIG).write_text(json.dumps(values))
    files = (path for path in (checkpoints(copy) / "4" / "state").rglob("*") if path.is_file())
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[50] ^= 255
    file.write_bytes(content)
    with pytest.raises(UsageError, match="other content than was written"):
        restore.find_step(copy, 4)
