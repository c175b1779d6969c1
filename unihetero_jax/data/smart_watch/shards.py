"""Writes the shards of a Smart Watch dataset, in this process or in a pool of others.

A worker is a plain child process that reads jobs from its standard input, a JSON line each, and answers on its standard
output. It is not a ``multiprocessing`` child on purpose: those import the caller's main module again, and with it
whatever that imports, JAX included.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from unihetero_jax.data.smart_watch import TASKS, records
from unihetero_jax.data.smart_watch.tfds import NAME, SETS, SmartWatchArguments, serialize, split_name

_SHARD_BYTES = 200_000_000
# Few files, since a reader keeps each open; but enough that many cores finish together.
_WANTED_SHARDS, _SMALLEST_SHARD = 64, 256
_SAMPLED_IMAGES = 16
# One record a chunk gives cheap random access; pictures are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Also how long a worker may outlive its parent, and how soon it hears of another's failure.
_REPORT_EVERY_S = 0.1


@dataclasses.dataclass(frozen=True)
class Shard:
    """A range of images, whose records go into one file a task.

    Attributes:
        part: ``"train"`` or ``"test"``.
        number: Which shard of its part, from 0.
        count: Shards in its part.
        start: Number of the first image.
        stop: Number after the last image.
    """

    part: str
    number: int
    count: int
    start: int
    stop: int

    def file(self, task: str) -> str:
        """Name of the file for a task, as TFDS expects it."""
        return f"{NAME}-{split_name(self.part, task)}.array_record-{self.number:05d}-of-{self.count:05d}"


@dataclasses.dataclass(frozen=True)
class Written:
    """What became of a list of shards.

    Attributes:
        bytes: Serialised bytes of each shard's records, by task.
        seconds: From the moment that the first process was ready to the end.
    """

    bytes: dict[Shard, dict[str, int]]
    seconds: float


def plan(arguments: SmartWatchArguments) -> list[Shard]:
    """Divides the images into shards; depends on nothing but the arguments, so the files do not either."""
    sample = [max(len(data) for data in _serialized(arguments, index).values()) for index in range(_SAMPLED_IMAGES)]
    # A record is within a few percent of another; twice the largest of a sample is beyond any doubt.
    most_images = max(1, _SHARD_BYTES // (2 * max(sample)))
    shards = []
    for part in SETS:
        indices = arguments.indices(part)
        wanted = min(_WANTED_SHARDS, -(-len(indices) // _SMALLEST_SHARD))
        count = max(wanted, -(-len(indices) // most_images))
        bounds = [indices.start + len(indices) * i // count for i in range(count + 1)]
        shards += [Shard(part, i, count, bounds[i], bounds[i + 1]) for i in range(count)]
    return shards


def write_shards(
    directory: Path,
    arguments: SmartWatchArguments,
    shards: Sequence[Shard],
    workers: int,
    progress: Callable[[int], None],
    inherited: Sequence[int] = (),
) -> Written:
    """Writes every shard.

    Args:
        directory: Where; it exists.
        arguments: What decides the records.
        shards: From `plan`.
        workers: Processes; with 1 the work is done in this one.
        progress: Called with the number of images finished since the last call, from any thread.
        inherited: File descriptors that each worker holds open until it ends.

    Raises:
        OSError: A file could not be written.
        RuntimeError: A worker failed; its traceback went to standard error.
    """
    if workers == 1:
        started = time.monotonic()
        done = {shard: _write_shard(directory, arguments, shard, progress) for shard in shards}
        return Written(done, time.monotonic() - started)
    return _Pool(directory, arguments, shards, progress).run(min(workers, len(shards)), inherited)


def _serialized(arguments: SmartWatchArguments, index: int) -> dict[str, bytes]:
    """The records of an image as they are stored, by task."""
    made = records(arguments.seed, index, arguments.image_size, arguments.questions)
    return {one["task"]: serialize(one) for one in made}


def _write_shard(
    directory: Path, arguments: SmartWatchArguments, shard: Shard, progress: Callable[[int], None]
) -> dict[str, int]:
    """Writes the files of one shard; returns the serialised bytes of each task's records."""
    sizes = dict.fromkeys(TASKS, 0)
    with _write_errors():
        writers = {
            task: array_record_module.ArrayRecordWriter(os.fspath(directory / shard.file(task)), _WRITER_OPTIONS)
            for task in TASKS
        }
    for index in range(shard.start, shard.stop):
        for task, data in _serialized(arguments, index).items():
            with _write_errors():
                writers[task].write(data)
            sizes[task] += len(data)
        progress(1)
    with _write_errors():
        for writer in writers.values():
            writer.close()
    return sizes


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
    """ArrayRecord reports a full disk as a RuntimeError; callers expect an OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


class _Pool:
    """Worker processes, each driven by a thread that hands it one shard after the other."""

    def __init__(
        self,
        directory: Path,
        arguments: SmartWatchArguments,
        shards: Sequence[Shard],
        progress: Callable[[int], None],
    ):
        self._directory = directory
        self._arguments = arguments
        self._progress = progress
        self._jobs: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        for shard in shards:
            self._jobs.put(shard)
        self._lock = threading.Lock()
        self._started: float | None = None
        self._bytes: dict[Shard, dict[str, int]] = {}
        self._failures: list[Exception] = []

    def run(self, workers: int, inherited: Sequence[int]) -> Written:
        """Writes all shards; whatever happens, no worker is left when it returns."""
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(_worker_process(inherited)) for _ in range(workers)]
            threads = [threading.Thread(target=self._drive, args=(process,), daemon=True) for process in processes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if self._failures:
                raise self._failures[0]  # Inside the block: the workers that still draw are killed, not awaited.
        assert self._started is not None
        return Written(self._bytes, time.monotonic() - self._started)

    def _drive(self, process: subprocess.Popen[str]) -> None:
        """Feeds one worker until there are no jobs left, or another worker has failed."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            self._tell(process, {"directory": os.fspath(self._directory), **dataclasses.asdict(self._arguments)})
            self._hear(process)
            with self._lock:
                self._started = self._started or time.monotonic()
            while not self._failures:
                try:
                    shard = self._jobs.get_nowait()
                except queue.Empty:
                    break
                self._tell(process, dataclasses.asdict(shard))
                while "drawn" in (reply := self._hear(process)):
                    self._progress(reply["drawn"])
                    if self._failures:
                        return
                with self._lock:
                    self._bytes[shard] = reply["bytes"]
            process.stdin.close()
        except Exception as error:  # Raised again by `run`: a thread that died in silence would leave shards out.
            with self._lock:
                self._failures.append(error)

    def _tell(self, process: subprocess.Popen[str], message: dict[str, object]) -> None:
        assert process.stdin is not None
        # A worker that ended is noticed, and its reason told, when its answer is awaited.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def _hear(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker process ended early, with exit code {process.wait()}")
        reply = json.loads(line)
        if "unwritable" in reply:
            raise OSError(reply["unwritable"])
        return reply


@contextlib.contextmanager
def _worker_process(inherited: Sequence[int]) -> Iterator[subprocess.Popen[str]]:
    """A worker, killed on the way out if it still runs."""
    package_root = os.fspath(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=inherited,
        # Control-C is for the parent, which ends the workers.
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package_root, *filter(None, sys.path)])},
    )
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _main() -> None:
    """A worker: one line with the arguments, then a shard a line, until standard input ends."""
    opening = json.loads(sys.stdin.readline())
    directory = Path(opening.pop("directory"))
    arguments = SmartWatchArguments(**opening)
    drawn = 0
    reported = time.monotonic()

    def answer(message: dict[str, object]) -> None:
        try:
            print(json.dumps(message), flush=True)
        except BrokenPipeError:
            # The parent was killed and could not say so. Nobody wants the shard: leave it as it is, in silence.
            os._exit(1)

    def progress(images: int) -> None:
        nonlocal drawn, reported
        drawn += images
        if time.monotonic() - reported > _REPORT_EVERY_S:
            answer({"drawn": drawn})
            drawn, reported = 0, time.monotonic()

    answer({"ready": True})
    for line in sys.stdin:
        try:
            sizes = _write_shard(directory, arguments, Shard(**json.loads(line)), progress)
        except OSError as error:
            answer({"unwritable": str(error)})
            sys.exit(1)
        answer({"drawn": drawn})
        drawn = 0
        answer({"bytes": sizes})


if __name__ == "__main__":
    _main()
