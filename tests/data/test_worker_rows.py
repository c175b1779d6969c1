"""Rows made by worker processes: the same as without, whatever happens to the processes."""

from __future__ import annotations

import collections
import contextlib
import logging
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from streams import ROWS, SHAPE, WINDOW, Records, assert_same, batch_stream, open_stream, take
from test_pipeline import BAD, REASONS

from unihetero_jax.data.mixing import Mixture, Source
from unihetero_jax.data.packing.packed_batch import RowShape
from unihetero_jax.data.packing.processes import share_of_cores
from unihetero_jax.data.packing.rows_from_workers import WorkerLost
from unihetero_jax.data.packing.shared_batches import Layout, Ring
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

HERE = Path(__file__).parent


class Broken(Records):
    """Fails in a way that nobody expects."""

    def __getitem__(self, position: int):
        if position == 5:
            raise ZeroDivisionError("by nought")
        return super().__getitem__(position)


class Refused(Records):
    """Says that a whole dataset is wrong, not one record."""

    def __getitem__(self, position: int):
        if position == 41:
            raise UsageError("the manifest lies")
        return super().__getitem__(position)


def processes(stream) -> list[subprocess.Popen]:
    return [worker._process for worker in stream._maker._workers]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return met


@pytest.mark.parametrize(("workers", "threads"), [(1, 2), (2, 1), (3, 2), (9, 1)])
def test_workers_change_nothing(workers, threads):
    whole = take(Records(BAD), 14, max_bad_records=7)
    first = take(Records(BAD), 5, max_bad_records=7, workers=workers, threads=threads, read_ahead=1)
    assert_same(first, whole[:5])
    # Another number of workers goes on where they were, and none goes on where it was.
    second = take(Records(BAD), 5, max_bad_records=7, workers=2, state=first[-1][1])
    assert_same(second, whole[5:10])
    assert_same(take(Records(BAD), 4, max_bad_records=7, state=second[-1][1]), whole[10:])


def test_without_what_only_linux_has_the_rows_are_the_same(monkeypatch):
    whole = take(Records(), 3)
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(mmap, "MAP_POPULATE")
    assert share_of_cores(-1, 0, 4, 10**9)[1] >= 1
    for workers in (0, 2):
        assert_same(take(Records(), 3, workers=workers), whole)


def test_hosts_with_workers_make_their_own_rows():
    whole = take(Records(), 4)
    for rows in ([0, 2, 3], [1]):
        expected = [tuple({name: array[rows] for name, array in part.items()} for part in made) for made in whole]
        assert_same(take(Records(), 4, rows=rows, workers=2), expected)


def test_stored_datasets_are_read_as_without_workers(dataset):
    records = Dataset(dataset)
    mixture = Mixture(
        [
            Source("vqa", records.split("train_vqa"), 1.0, fit="crop", share=0.8, random=True, flip=True),
            Source("generation", records.split("train_generation"), 2.0, generation=True),
        ],
        seed=3,
    )

    def made(workers: int):
        stream = batch_stream(
            mixture,
            Tokenizer.load(dataset / "tokenizer.model"),
            dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 4),
            RowShape(192, 4, 32),
            batch_size=5,
            rows=range(5),
            window=4,
            threads=1,
            read_ahead=2,
            max_bad_records=0,
            request_dropout=0.5,
            workers=workers,
        )
        try:
            return [next(stream) for _ in range(3)]
        finally:
            stream.close()

    assert_same(made(2), made(0))


def test_requests_are_left_out_as_often_as_asked(dataset):
    tokenizer = Tokenizer.load(dataset / "tokenizer.model")
    mixture = Mixture([Source("generation", Dataset(dataset).split("train_generation"), 1.0, generation=True)], seed=3)
    with contextlib.closing(
        batch_stream(
            mixture,
            tokenizer,
            dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 4),
            RowShape(192, 4, 32),
            batch_size=5,
            rows=range(5),
            window=4,
            threads=1,
            read_ahead=2,
            max_bad_records=0,
            request_dropout=0.25,
        )
    ) as stream:
        ids = np.concatenate([next(stream)[0]["tokens"].ravel() for _ in range(8)])
    requests = np.flatnonzero(ids == tokenizer.user_id)
    assert len(requests) > 100
    # A request without text is a space, and then the image.
    assert 0.15 < np.mean(ids[requests + 2] == tokenizer.image_start_id) < 0.35


def test_bad_records_are_told_by_the_parent_and_limited_over_all_workers(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unihetero_jax"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="unihetero_jax"):
        take(Records(BAD), 12, max_bad_records=7, workers=3)
    told = {int(message.split()[2]): message.split()[3] for message in caplog.messages}
    assert told == {position: f"({reason}):" for position, reason in REASONS.items()}
    line = r"7 records were skipped \(.*2 unreadable.*\) of \d\d+, more than config\.data\.max_bad_records=6 and "
    with pytest.raises(UsageError, match=line):
        take(Records(BAD), 12, max_bad_records=6, workers=3)


def test_too_many_bad_records_stop_at_the_same_batch_with_and_without_workers():
    later = {position + 120: made for position, made in BAD.items()}

    def until_it_stops(workers: int) -> int:
        stream = open_stream(Records(later), max_bad_records=6, workers=workers, threads=1, read_ahead=3)
        try:
            for count in range(99):  # noqa: B007 - it is returned
                next(stream)
        except UsageError:
            with pytest.raises(UsageError):  # whoever asks again does not wait for ever
                next(stream)
            return count
        finally:
            stream.close()
        raise AssertionError

    assert until_it_stops(2) == until_it_stops(0) > 0


def test_where_nothing_fits_the_limit_still_ends_it():
    with pytest.raises(UsageError, match="101 records were skipped"):
        take(Records(dict.fromkeys(range(10_000), BAD[9])), 1, max_bad_records=100, workers=2)


def test_a_worker_that_is_killed_is_named_within_a_second():
    stream = open_stream(Records(), workers=2)
    try:
        next(stream)
        victim, other = processes(stream)
        victim.kill()
        started = time.monotonic()
        line = rf"data worker \(process {victim.pid}\) was killed by SIGKILL; is memory short\?"
        with pytest.raises(WorkerLost, match=line):
            collections.deque(stream, maxlen=0)
        assert time.monotonic() - started < 1.0
        with pytest.raises(WorkerLost):
            next(stream)
    finally:
        stream.close()
    assert not is_running(other.pid)


def test_what_fails_in_a_worker_fails_here(capfd):
    with pytest.raises(RuntimeError, match=r"a data worker failed \(ZeroDivisionError: by nought\)"):
        take(Broken(), 9, workers=2)
    assert "Traceback" in capfd.readouterr().err
    with pytest.raises(UsageError, match="the manifest lies"):
        take(Refused(), 99, workers=2)
    with pytest.raises(TypeError, match=r"the data source cannot be sent to a worker process: .*lock"):
        open_stream(threading.Lock(), workers=1)


def test_close_ends_workers_whatever_they_are_at():
    for batches in (0, 1):
        stream = open_stream(Records(), workers=2)
        for _ in range(batches):
            next(stream)
        started = processes(stream)
        assert all(is_running(process.pid) for process in started)
        descriptor = stream._maker._ring.memory
        stream.close()
        stream.close()
        assert not any(is_running(process.pid) for process in started)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


KILLED = """
import sys, time
from streams import Records, open_stream
stream = open_stream(Records(), workers=2)
next(stream)
print(*(worker._process.pid for worker in stream._maker._workers), flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(60)", "while True: next(stream)"])
def test_nothing_is_left_of_a_parent_that_is_killed(then):
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(then=then)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(is_running(pid) for pid in workers)
        [memory] = shared_memory(parent.pid)
        assert all(shared_memory(pid) == {memory} for pid in workers)
    finally:
        parent.kill()
        parent.wait()
    assert wait_for(lambda: not any(map(is_running, workers)), 10.0)
    everywhere = [shared_memory(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    assert memory not in set().union(*everywhere)


def shared_memory(pid: int) -> set[str]:
    """Inodes of the batches that a process has mapped."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {line.split()[4] for line in lines if "memfd:packed batches" in line}
    return set()


def test_control_c_is_for_the_parent():
    stream = open_stream(Records(), workers=1)
    try:
        [worker] = processes(stream)
        assert os.getpgid(worker.pid) != os.getpgid(0)
        next(stream)
    finally:
        stream.close()
    assert worker.returncode == -signal.SIGKILL


def test_a_batch_stays_as_it_is_while_somebody_refers_to_it():
    whole = take(Records(), 12)
    stream = open_stream(Records(), workers=2, read_ahead=1)
    try:
        first, _ = next(stream)
        view = first["images"][1:, ::2]
        del first
        for _ in range(10):
            batch, _ = next(stream)
        np.testing.assert_array_equal(view, whole[0][0]["images"][1:, ::2])
        np.testing.assert_array_equal(batch["tokens"], whole[10][0]["tokens"])
        # One held, one in hand, one ready, one offered, two in work.
        assert stream._maker._ring._count <= 7
    finally:
        stream.close()
    np.testing.assert_array_equal(batch["tokens"], whole[10][0]["tokens"])


def test_slots_are_used_again_and_begin_where_vectors_are_loaded():
    ring = Ring(Layout(ROWS, SHAPE, WINDOW))
    number = ring.take()
    batch, state = ring.arrays(number)
    assert all(array.ctypes.data % 64 == 0 for array in batch.values())
    assert ring.take() != number, "it is held"
    del batch
    assert ring.take() == number
    state["drawn"][:] = 7
    assert (ring.arrays(number)[1]["drawn"] == 0).all(), "the state is a copy"
    ring.close()


def test_workers_start_without_jax():
    modules = ("packing.row_worker", "features", "records.shards", "sources.shards", "sources.grain")
    imports = "\n".join(f"import unihetero_jax.data.{module}" for module in modules)
    code = f"import sys\n{imports}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({"jax", "jaxlib", "flax", "grain", "tensorflow", "matplotlib"})


def test_the_machine_decides_unless_the_user_does(monkeypatch):
    def shares(cores: int, workers: int = 0, threads: int = 0, rows: int = 99, memory: int = 10**9):
        monkeypatch.setattr("unihetero_jax.data.packing.processes.usable_cores", lambda: cores)
        return share_of_cores(workers, threads, rows, memory)

    assert shares(2) == (0, 2)
    assert shares(2, workers=2) == (2, 1)
    assert shares(8)[0] > 1
    assert shares(8, rows=1)[0] == 1
    assert shares(8, memory=10**6)[0] == 0
    assert shares(64, workers=-1) == (0, 16)
    assert shares(64, workers=-1, threads=3) == (0, 3)
    assert shares(64, workers=5, threads=3) == (5, 3)
