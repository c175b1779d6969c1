"""A damaged checkpoint is found before it is used, and the newest good one takes its place."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs
from tiny_config import tiny_config

from unihetero_jax.checkpoint import checksums
from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.checkpoint.restore import DamagedError
from unihetero_jax.checkpoint.writer import CheckpointWriter
from unihetero_jax.config import to_json
from unihetero_jax.errors import UsageError

STATE = {"params": {"kernel": np.arange(4096, dtype=np.float32).reshape(64, 64)}, "step": np.int32(7)}


def save(workdir: Path, *steps: int, **changes) -> None:
    config = tiny_config(**changes)
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(to_json(config))
    writer = CheckpointWriter(workdir, config.checkpoint)
    items = {"config": config.to_dict(), "timers": {"train_seconds": 1.0}}
    state = jax.tree.map(jax.numpy.asarray, STATE)
    for step in steps:
        writer.save(step, state, {"drawn": np.zeros(8, np.int32)}, items)
    writer.save(max(steps) + 1, state, {"drawn": np.zeros(8, np.int32)}, items, required=True)
    writer.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints 2, 4 and 5; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("damage") / "run"
    save(workdir, 2, 4, **{"checkpoint.keep_latest": 3})
    return workdir


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unihetero_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "unihetero_jax")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("unihetero_jax")]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def largest(place: Path) -> Path:
    return max((path for path in place.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def files(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


def test_every_file_of_a_checkpoint_has_a_checksum(saved):
    for step in (2, 4):
        place = saved / "checkpoints" / str(step)
        assert checksums.read(place).keys() == files(place) - {checksums.MANIFEST}
        assert checkpoint.damage(place, "full") is None


def test_whatever_file_is_damaged_is_named(saved, copy):
    place = copy / "checkpoints" / "4"
    for name in sorted(files(place)):
        path = place / name
        whole = path.read_bytes()
        if whole:
            flip(path)
            assert checkpoint.damage(place, "full").startswith(name), name
            path.write_bytes(whole[:-1])
            assert checkpoint.damage(place, "full").startswith(name), name
        path.unlink()
        assert checkpoint.damage(place, "full") == f"{name}: missing"
        path.write_bytes(whole)
    assert checkpoint.damage(place, "full") is None


def test_a_reader_takes_the_newest_good_one_and_says_so(copy, said):
    name = largest(copy / "checkpoints" / "5")
    flip(name)
    assert checkpoint.find_step(copy, None) == 4
    (line,) = said()
    assert f"damaged: 5/{name.relative_to(copy / 'checkpoints' / '5')}: other content" in line
    assert line.endswith("using step 4")
    assert checkpoint.find_step(copy, 4) == 4
    assert checkpoint.steps(copy) == [2, 4, 5], "a reader moves nothing"


def test_the_one_asked_for_is_refused_with_the_good_ones(copy):
    largest(copy / "checkpoints" / "2" / "state").unlink()
    flip(largest(copy / "checkpoints" / "4"))
    found = r"checkpoints/4: damaged: \S+: other content than was written; good are: 5$"
    with pytest.raises(DamagedError, match=found):
        checkpoint.find_step(copy, 4)


def test_a_run_sets_the_damaged_one_aside_and_saves_it_anew(copy, said):
    flip(largest(copy / "checkpoints" / "5"))
    (copy / "checkpoints" / "4" / "config" / "metadata").unlink()
    writer = CheckpointWriter(copy, tiny_config().checkpoint)
    writer.close()
    assert writer.found == writer.latest() == 2
    moved = [line for line in said() if "moved to" in line]
    assert len(moved) == 2
    assert all("continuing from step 2" in line for line in moved)
    assert sorted(path.name for path in (copy / "checkpoints" / "bad").iterdir()) == ["4", "5"]
    save(copy, 4)
    assert runs.checkpoint_steps(copy) == [4, 5]
    assert checkpoint.find_step(copy, None) == 5
    flip(largest(copy / "checkpoints" / "5"))
    CheckpointWriter(copy, tiny_config().checkpoint).close()
    assert sorted(path.name for path in (copy / "checkpoints" / "bad").iterdir()) == ["4", "5", "5.1"]


def test_where_none_is_good_nothing_begins_anew(copy):
    for step in (2, 4, 5):
        flip(largest(copy / "checkpoints" / str(step)))
    with pytest.raises(UsageError, match=r"no good checkpoint among steps 5 \(\S+: other .*; 4 \(.*; 2 \(.*start anew"):
        CheckpointWriter(copy, tiny_config().checkpoint)
    assert checkpoint.steps(copy) == [2, 4, 5]
    with pytest.raises(UsageError, match="no good checkpoint: 5/"):
        checkpoint.find_step(copy, None)


@pytest.mark.parametrize(("level", "found"), [("full", 4), ("sizes", 5), ("off", 5)])
def test_how_much_is_read_is_a_setting(copy, level, found):
    flip(largest(copy / "checkpoints" / "5"))
    (copy / "config.json").write_text(to_json(tiny_config(**{"checkpoint.verify": level})))
    assert checkpoint.find_step(copy, None) == found
    writer = CheckpointWriter(copy, tiny_config(**{"checkpoint.verify": level}).checkpoint)
    writer.close()
    assert writer.found == found


def test_without_checksums_it_is_taken_as_it_is(tmp_path, said):
    save(tmp_path / "run", 2, **{"checkpoint.verify": "off"})
    assert not (tmp_path / "run" / "checkpoints" / "2" / checksums.MANIFEST).exists()
    (tmp_path / "run" / "config.json").unlink()
    assert checkpoint.find_step(tmp_path / "run", None) == 3
    assert any("written without checksums; not checked" in line for line in said())


def test_what_lost_its_manifest_and_what_tells_of_it_is_damaged(copy):
    place = copy / "checkpoints" / "5"
    (place / checksums.MANIFEST).unlink()
    assert checkpoint.damage(place, "full") == "checksums.json: missing"
    (place / "config" / "metadata").unlink()
    assert checkpoint.damage(place, "full") == "config/metadata: missing or damaged"
    assert checkpoint.find_step(copy, None) == 4


def test_plain_orbax_reads_what_has_a_manifest(saved):
    with ocp.CheckpointManager((saved / "checkpoints").absolute(), item_names=("state", "timers")) as manager:
        assert manager.all_steps() == [2, 4, 5]
        restored = manager.restore(4, args=ocp.args.Composite(timers=ocp.args.JsonRestore()))
    assert restored.timers == {"train_seconds": 1.0}
    found = runs.arrays(saved, 4, ["state"])
    np.testing.assert_array_equal(found["state['params']['kernel']"], STATE["params"]["kernel"])
