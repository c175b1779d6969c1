"""A disk that is full, read-only or slow: training goes on or stops, and no older checkpoint is lost."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from packed import VOCABULARY, configure, random_batch
from tiny_config import tiny_config

from unihetero_jax.checkpoint import checksums
from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.checkpoint.writer import CheckpointWriter
from unihetero_jax.data.packing.row_stream import initial_state
from unihetero_jax.errors import UsageError
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.parallel.processes import Preemption
from unihetero_jax.train.loop import train
from unihetero_jax.train.monitor.telemetry import MetricsLog, TensorBoard
from unihetero_jax.train.unified import UnifiedLearner

MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unihetero_jax"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("unihetero_jax")]


def fill(disk: Path) -> Path:
    """Leaves no byte; the file whose removal makes room again."""
    path = disk / "full"
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"\1" * 4096)
            except OSError:
                return path


def save(writer: CheckpointWriter, step: int, megabytes: float = 1.0, required: bool = False) -> None:
    noise = np.random.default_rng(step).standard_normal(int(megabytes * MEGABYTE / 4), np.float32)
    state = {"params": jax.numpy.asarray(noise)}
    writer.save(
        step,
        state,
        {"drawn": np.zeros(8, np.int32)},
        {"config": tiny_config().to_dict(), "timers": {}},
        required=required,
    )


def writer_in(workdir: Path, **changes) -> CheckpointWriter:
    return CheckpointWriter(
        workdir, tiny_config(**{f"checkpoint.{name}": value for name, value in changes.items()}).checkpoint
    )


def parts(workdir: Path) -> list[str]:
    return [path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdigit()]


def test_a_full_disk_is_said_counted_and_tried_again(disk, said):
    writer = writer_in(disk, keep_latest=1)
    save(writer, 1, required=True)
    room = fill(disk)
    save(writer, 2)
    assert writer.failed == 1
    assert "the checkpoint of step 2 cannot be written: " in said()[-1]
    assert said()[-1].endswith(
        "; step 1 is retained; training continues, and the next save retries (1 of 3 failures in a row)"
    )
    assert checkpoint.find_step(disk, None) == 1
    room.unlink()
    save(writer, 3, required=True)
    assert runs.checkpoint_steps(disk) == [3]
    assert checkpoint.find_step(disk, None) == 3
    writer.close()


def test_a_disk_that_fills_up_on_the_way(disk, said):
    writer = writer_in(disk, keep_latest=1)
    save(writer, 1, required=True)
    save(writer, 2, megabytes=20.0)  # begins well
    save(writer, 3)
    assert "the checkpoint of step 2 cannot be written: No space left on device; step 1 is retained" in said()[-1]
    assert writer.failed == 1
    writer.close()
    assert runs.checkpoint_steps(disk) == [3]
    assert parts(disk) == []
    assert checkpoint.find_step(disk, None) == 3


def test_what_waits_for_a_save_learns_whether_it_failed_and_that_counts(disk, said):
    writer = writer_in(disk, keep_latest=1)
    save(writer, 1)
    assert writer.settle(1)
    save(writer, 2, megabytes=20.0)
    assert not writer.settle(2)
    assert writer.failed == 1
    assert "the checkpoint of step 2 cannot be written: No space left on device" in said()[-1]
    writer.close()


def test_a_lost_claim_ends_the_next_save(tmp_path):
    def lost() -> None:
        raise UsageError("another process")

    writer = CheckpointWriter(tmp_path, tiny_config().checkpoint, lost)
    with pytest.raises(UsageError, match="another process"):
        save(writer, 1)
    assert runs.checkpoint_steps(tmp_path) == []


def test_only_so_many_failures_in_a_row_and_none_at_the_end(disk):
    writer = writer_in(disk, max_failures=1)
    save(writer, 1, required=True)
    room = fill(disk)
    save(writer, 2)
    room.unlink()
    save(writer, 3, required=True)
    fill(disk)
    save(writer, 4)
    with pytest.raises(UsageError, match=r"step 5 cannot be written: .*; step 3 is retained$"):
        save(writer, 5)
    writer.close()
    patient = writer_in(disk, max_failures=9)
    with pytest.raises(UsageError, match=r"step 6 cannot be written: .*; step 3 is retained$"):
        save(patient, 6, required=True)
    patient.close()
    assert runs.checkpoint_steps(disk) == [1, 3]


def test_a_disk_that_becomes_read_only(disk, said):
    writer = writer_in(disk)
    save(writer, 1, required=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    save(writer, 2)
    assert "the checkpoint of step 2 cannot be written: Read-only file system; step 1 is retained" in said()[-1]
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    save(writer, 3, required=True)
    writer.close()
    assert runs.checkpoint_steps(disk) == [1, 3]


def test_a_slow_disk_is_waited_for_only_so_long(tmp_path, monkeypatch, said):
    writer = writer_in(tmp_path, patience=0.2)
    go_on, real = threading.Event(), checksums.write
    monkeypatch.setattr(checksums, "write", lambda place: (go_on.wait(60), real(place))[1])
    save(writer, 1)
    save(writer, 2)
    assert writer.failed == 1
    assert "step 2 is not saved: step 1 is still being written after 0.2 s (config.checkpoint.patience)" in said()[-1]
    go_on.set()
    save(writer, 3, required=True)
    writer.close()
    assert runs.checkpoint_steps(tmp_path) == [1, 3]


def test_rows_wait_until_there_is_room(disk, said):
    log = MetricsLog(disk / "metrics.jsonl", 0)
    log.write({"step": 1})
    room = fill(disk)
    for step in range(2, 400):
        log.write({"step": step, "text": "x" * 80, "loss": float("nan")})
    with pytest.raises(OSError, match="No space left"):
        log.sync()
    assert len([line for line in said() if "rows are kept in memory" in line]) == 1
    room.unlink()
    log.write({"step": 400})
    log.close()
    rows = [json.loads(line) for line in (disk / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 401))
    assert rows[5]["loss"] is None


def test_tensorboard_does_not_hold_up_training(disk, said):
    board = TensorBoard(disk, 0)
    row = {"step": 1, "timing": {"time": 0.0, "step_seconds": 1.0}, **{f"value{number}": 1.0 for number in range(400)}}
    board.write(row)
    fill(disk)
    for _ in range(100):
        board.write(row)
    board.close()
    assert len([line for line in said() if "cannot be written: No space left" in line and "without it" in line]) == 1


class Stream:
    """Batches during some of which the disk is full."""

    def __init__(self, config, disk: Path, full: range):
        self._batch, self._disk, self._full, self._drawn = random_batch(config), disk, full, 0
        self._state = initial_state(config.train.batch_size, config.data.packing_window)

    def __next__(self):
        self._drawn += 1
        if self._drawn == self._full.start:
            while not checkpoint.steps(self._disk):
                time.sleep(0.01)
            fill(self._disk)
        if self._drawn == self._full.stop:
            (self._disk / "full").unlink()
        return self._batch, self._state

    def close(self):
        pass


def test_a_run_outlives_a_full_disk(disk):
    options = {"train.steps": 8, "checkpoint.every_steps": 2, "checkpoint.keep_latest": 9, "logging.tensorboard": False}
    config = configure(**options)
    learner = UnifiedLearner(config, define(config, VOCABULARY))
    preemption = Preemption()
    try:
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        train(learner, lambda rows, state: Stream(config, disk, range(4, 6)), disk, mesh, preemption)
    finally:
        preemption.close()
    assert [row["step"] for row in runs.metrics(disk)] == list(range(1, 9))
    assert runs.checkpoint_steps(disk) == [2, 6, 8]
    last = json.loads((disk / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["timing"]["failed_saves"] == 1
