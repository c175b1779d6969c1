"""Write the shards of a Smart Watch dataset, in this process or in a pool of others."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from array_record.python import array_record_module

from unihetero_jax.data.ingest.process_pool import Message, Work, run_jobs, serve
from unihetero_jax.data.records.building import WRITER_OPTIONS, shard_file, write_errors
from unihetero_jax.data.smart_watch import TASKS, records
from unihetero_jax.data.smart_watch.tfds_builder import (
    NAME,
    SETS,
    SmartWatchArguments,
    serialize,
    split_name,
)

_SHARD_BYTES = 200_000_000
# Few files, since a reader keeps each open, but enough to keep many cores busy until the end.
_WANTED_SHARDS, _SMALLEST_SHARD = 64, 256
_SAMPLED_IMAGES = 16


@dataclasses.dataclass(frozen=True)
class Shard:
    """A range of images, whose records go into one file per task.

    Attributes:
        part: ``"train"`` or ``"test"``.
        number: Number of the shard in its part, from 0.
        count: Shards in the part.
        start: Number of the first image.
        stop: Number after the last image.
    """

    part: str
    number: int
    count: int
    start: int
    stop: int

    def file(self, task: str) -> str:
        """Return the name of the file for a task, as TFDS expects it."""
        return shard_file(NAME, split_name(self.part, task), self.number, self.count)


@dataclasses.dataclass(frozen=True)
class Written:
    """Result of writing shards.

    Attributes:
        bytes: Serialized bytes of each shard's records, by task.
        seconds: From the moment that the first process was ready to the end.
    """

    bytes: dict[Shard, dict[str, int]]
    seconds: float


def plan(arguments: SmartWatchArguments) -> list[Shard]:
    """Divide the images into shards, in a way that depends on the arguments alone."""
    sample = [max(len(data) for data in _serialized(arguments, index).values()) for index in range(_SAMPLED_IMAGES)]
    # Records differ by a few percent in size; twice the largest of a sample is a safe bound.
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
    """Write every shard.

    Args:
        directory: An existing directory.
        arguments: Arguments of the dataset.
        shards: Shards from `plan`.
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
    written: dict[Shard, dict[str, int]] = {}

    def note(number: int, result: Message) -> None:
        written[shards[number]] = dict(result)

    opening = {"directory": os.fspath(directory), **dataclasses.asdict(arguments)}
    jobs = [dataclasses.asdict(shard) for shard in shards]
    seconds = run_jobs(__name__, opening, jobs, workers, progress, note, inherited)
    return Written(written, seconds)


def _serialized(arguments: SmartWatchArguments, index: int) -> dict[str, bytes]:
    """Return the serialized records of an image by task."""
    made = records(arguments.seed, index, arguments.image_size, arguments.questions, arguments.hidden(index))
    return {one["task"]: serialize(one) for one in made}


def _write_shard(
    directory: Path, arguments: SmartWatchArguments, shard: Shard, progress: Callable[[int], None]
) -> dict[str, int]:
    """Write the files of one shard; return the serialized bytes of each task's records."""
    sizes = dict.fromkeys(TASKS, 0)
    with write_errors():
        writers = {
            task: array_record_module.ArrayRecordWriter(os.fspath(directory / shard.file(task)), WRITER_OPTIONS)
            for task in TASKS
        }
    for index in range(shard.start, shard.stop):
        for task, data in _serialized(arguments, index).items():
            with write_errors():
                writers[task].write(data)
            sizes[task] += len(data)
        progress(1)
    with write_errors():
        for writer in writers.values():
            writer.close()
    return sizes


def _begin(opening: Message) -> Work:
    """Return the function with which a worker writes shards of one dataset."""
    fields = dict(opening)
    directory = Path(fields.pop("directory"))
    arguments = SmartWatchArguments(**fields)
    return lambda job, progress: _write_shard(directory, arguments, Shard(**job), progress)


if __name__ == "__main__":
    serve(_begin)
