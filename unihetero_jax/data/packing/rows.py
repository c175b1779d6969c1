"""The rows of one process: what they are made of, their streams, and the threads that make them.

Whether that process is the one that trains or a worker of it (``data.packing.worker_rows``) makes no difference here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, TypeVarTuple

import numpy as np

from unihetero_jax.data.packing.process_pool import usable_cores
from unihetero_jax.data.packing.row_stream import (
    DataState,
    PackedBatch,
    RowShape,
    RowStream,
    fill_slots,
    stream_state,
)
from unihetero_jax.data.packing.sample import Planned, Role, plan_sample
from unihetero_jax.data.records.images import MAX_PIXELS
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

# Sets these draws apart from others that are made of a position.
_DROPOUT_STREAM = 0x5E9
_MOST_THREADS = 16
# By itself a host gives half of its cores to workers: what is left is for the steps, and for a second thread in each
# worker. Eight make some 20,000 samples a second of 256-pixel JPEGs; where cores are few, the steps want all of them.
_FEWEST_CORES, _CORES_A_WORKER, _MOST_WORKERS = 4, 2, 8
# Without JAX a worker starts with 62 MB; files of samples that wait for their row, and readers of shards, come on top.
_WORKER_BYTES = 100 << 20
# Samples of a row that are read together when it draws more than the one before.
_GROUP = 4
# Rows of which one thread reads all that they will draw, before it decodes any of it.
_TOGETHER = 8


def usable_threads() -> int:
    """One thread a core that this process may use; beyond 16 the interpreter's lock would be what they wait for."""
    return min(usable_cores(), _MOST_THREADS)


def share_of_cores(workers: int, threads: int, rows: int, memory_bytes: int) -> tuple[int, int]:
    """How many worker processes make rows, and how many threads each process that makes rows has.

    Args:
      workers: as wanted; 0: by the machine; -1: none.
      threads: as wanted; 0: by the machine.
      rows: to make; a worker has one at least.
      memory_bytes: that the workers may take where their number is chosen here.
    """
    cores = usable_cores()
    if not workers:
        # With few cores all of them are wanted for the steps themselves, and processes only take turns with them.
        most = min(cores // _CORES_A_WORKER, _MOST_WORKERS, memory_bytes // _WORKER_BYTES)
        workers = most if cores >= _FEWEST_CORES else 0
    workers = min(max(workers, 0), rows)
    return workers, threads or (max(1, min(cores // workers, 2)) if workers else usable_threads())


class Samples(Protocol):
    """Records by position in an endless sequence, such as ``data.mixture.Mixture``."""

    def __getitem__(self, position: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Recipe:
    """What rows are made of, and how; alike in every process that makes some of them.

    Attributes:
      samples: position → record, endless.
      tokenizer: of the model.
      tokens_per_image: visual tokens of the tower that serves each role.
      shape: of a row.
      batch_size: B, rows of the global batch.
      window: samples that a row may hold back for a later one.
      input_role: of images that are shown.
      request_dropout: share of the requests for a picture whose words are left out.
      max_pixels: that an image may have to be decoded.
    """

    samples: Samples
    tokenizer: Tokenizer
    tokens_per_image: Mapping[Role, int]
    shape: RowShape
    batch_size: int
    window: int
    input_role: Role = Role.INPUT
    request_dropout: float = 0.0
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Skip:
    """A record that was left out: its position, the counter that it falls under, why, and the samples drawn so far."""

    position: int
    reason: str
    message: str
    drawn: int


OnSkip = Callable[[Skip], None]


class Rows:
    """Some rows of the global batch.

    Args:
      recipe: what they are made of.
      rows: their numbers in the global batch.
      threads: that read and decode.
      state: of all rows of the global batch.
      on_skip: told of every record that is left out, from any of the threads; what it raises stops the batch.
    """

    def __init__(self, recipe: Recipe, rows: Sequence[int], threads: int, state: DataState, on_skip: OnSkip):
        self._recipe, self._on_skip = recipe, on_skip
        self._streams = [self._open(row, state) for row in rows]
        self._threads = min(threads, len(self._streams))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="rows") if self._threads > 1 else None

    def make(self, batch: PackedBatch, indices: Sequence[int]) -> None:
        """The next row of each, in rows ``indices`` of a batch, whatever is there."""
        rows = list(zip(self._streams, indices, strict=True))
        size = min(_TOGETHER, -(-len(rows) // self._threads))
        # They go to whichever thread is free.
        todo = iter([rows[start : start + size] for start in range(0, len(rows), size)])

        def keep_making(_: int) -> None:
            for some in todo:
                # One stage for all, then the next: what a stage needs stays in the processor's caches.
                for stream, _ in some:
                    stream.read_ahead()
                for stream, index in some:
                    self._make_row(stream, batch, index)

        if self._pool is None:
            keep_making(0)
        else:
            list(self._pool.map(keep_making, range(self._threads)))

    def _make_row(self, stream: RowStream[Planned], batch: PackedBatch, index: int) -> None:
        shape = self._recipe.shape
        squares = list(batch["images"][index]) if shape.pixels else []

        def decode(row: Sequence[Planned]) -> list[InvalidRecord | None]:
            if not shape.pixels:
                return [self._why_undecodable(planned) for planned in row]
            # Here and not earlier: pixels take much more room than files while a sample waits for its row, and the
            # fewer of them there are, the less goes through memory. They are decoded where they stay.
            first, reasons = 0, []
            for planned in row:
                reasons.append(self._decode(planned, squares[first:]))
                first += len(planned.images)
            if any(reasons):
                batch["images"][index, :first] = 0  # what comes to lie elsewhere, or not at all
            return reasons

        row = stream.next_row(decode)
        fill_slots(batch, index, row, shape)

    def state(self) -> DataState:
        """Of these rows, in their order."""
        return stream_state(self._streams)

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _open(self, row: int, state: DataState) -> RowStream[Planned]:
        size = self._recipe.batch_size

        def skip(count: int, error: InvalidRecord) -> None:
            drawn = sum(stream.drawn for stream in self._streams)
            self._on_skip(Skip(row + count * size, error.reason, str(error), drawn))

        return RowStream(
            self._recipe.shape,
            self._recipe.window,
            fetch=lambda counts: self._fetch([row + count * size for count in counts]),
            on_skip=skip,
            drawn=int(state["drawn"][row]),
            pending=[int(count) for count in state["pending"][row] if count >= 0],
            skipped=[int(count) for count in state["skipped"][row]],
            group=_GROUP,
        )

    def _fetch(self, positions: Sequence[int]) -> list[Planned | InvalidRecord]:
        records = [_or_reason(self._record, position) for position in positions]
        return [
            record if isinstance(record, InvalidRecord) else _or_reason(self._plan, position, record)
            for position, record in zip(positions, records, strict=True)
        ]

    def _record(self, position: int) -> Mapping[str, Any]:
        try:
            return self._recipe.samples[position]
        except (OSError, RuntimeError, KeyError) as error:
            raise _unreadable(error) from error
        except ValueError as error:
            if isinstance(error, InvalidRecord):
                raise
            raise _unreadable(error) from error

    def _plan(self, position: int, record: Mapping[str, Any]) -> Planned:
        recipe = self._recipe
        try:
            return plan_sample(
                record,
                recipe.tokenizer,
                recipe.tokens_per_image,
                input_role=recipe.input_role,
                drop_request=self._drops(position),
                room=(recipe.shape.slots, recipe.shape.images),
            )
        except InvalidRecord:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _malformed(error) from error

    def _decode(self, planned: Planned, squares: Sequence[np.ndarray]) -> InvalidRecord | None:
        try:
            planned.decode_into(squares, self._recipe.max_pixels)
        except InvalidRecord as error:
            return error
        except (AttributeError, TypeError) as error:  # an image that is no bytes
            return _malformed(error)
        return None

    def _why_undecodable(self, planned: Planned) -> InvalidRecord | None:
        """What decoding would say, without decoding what could be decoded when its features were made."""
        if not planned.undecodable:
            return None
        side = self._recipe.shape.image_size
        return self._decode(planned, [np.empty((side, side, 3), np.uint8) for _ in planned.images])

    def _drops(self, position: int) -> bool:
        if not self._recipe.request_dropout:
            return False
        return np.random.default_rng([_DROPOUT_STREAM, position]).random() < self._recipe.request_dropout


_Given = TypeVarTuple("_Given")
_Made = TypeVar("_Made")


def _or_reason(make: Callable[[*_Given], _Made], *given: *_Given) -> _Made | InvalidRecord:
    """What is made, or why it cannot be."""
    try:
        return make(*given)
    except InvalidRecord as error:
        return error


def _unreadable(error: BaseException) -> InvalidRecord:
    return InvalidRecord("unreadable", f"record cannot be read: {_first_line(error)}")


def _malformed(error: BaseException) -> InvalidRecord:
    what = f"{type(error).__name__}: {_first_line(error)}"
    return InvalidRecord("invalid", f"expected image(s) and conversations of turns, got {what}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
