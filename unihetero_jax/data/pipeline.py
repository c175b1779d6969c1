"""Packed batches out of a mixture: row streams, made ahead of time by threads; the data state.

grain's own packer and iterator state depend on the number of processes and workers; ours are per row.
"""

from __future__ import annotations

import collections
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, TypeVarTuple

import numpy as np

from unihetero_jax.data.buffers import Buffers
from unihetero_jax.data.images import MAX_PIXELS
from unihetero_jax.data.invalid import SKIP_REASONS, InvalidRecord
from unihetero_jax.data.packing import (
    DataState,
    PackedBatch,
    RowShape,
    RowStream,
    batch_bytes,
    empty_batch,
    fill,
    initial_state,
    stream_state,
)
from unihetero_jax.data.sample import Planned, Role, Slots, plan_sample
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# Sets these draws apart from others that are made of a position.
_DROPOUT_STREAM = 0x5E9
# A batch is ready long before as many are; more would only take memory and, after a restart, be made again.
_MOST_AHEAD = 8
_MOST_THREADS = 16
# Samples of a row that are read together.
_GROUP = 16


def usable_threads() -> int:
    """One thread a core that this process may use; beyond 16 the interpreter's lock would be what they wait for."""
    return min(len(os.sched_getaffinity(0)), _MOST_THREADS)


class Samples(Protocol):
    """Records by position in an endless sequence, such as ``data.mixture.Mixture``."""

    def __getitem__(self, position: int, /) -> Mapping[str, Any]: ...


class BatchStream:
    """Packed batches of some rows of the global batch, made ahead of time by threads.

    Iterating gives ``(batch, state)``: the arrays of these rows, and the data state after them. Nothing that the model
    sees depends on ``threads`` or ``read_ahead``, nor on which rows are asked for where.

    Args:
      samples: position → record, endless.
      tokenizer: of the model.
      tokens_per_image: visual tokens of the tower that serves each role.
      shape: of a row.
      batch_size: B, rows of the global batch.
      rows: the rows to make here.
      window: samples that a row may hold back for a later one.
      threads: that read and decode.
      read_ahead: batches made before they are asked for; 0: as many as fit in memory, from 1 to 8.
      max_bad_records: records of these rows that may be skipped before the stream stops.
      max_bad_share: and this share of those drawn.
      state: of all B rows, as saved; None starts anew.
      input_role: of images that are shown.
      request_dropout: share of the requests for a picture whose words are left out; which ones depends on the position
        alone.
      max_pixels: that an image may have to be decoded.
      memory_bytes: that batches made ahead may take, where ``read_ahead`` is 0.

    Raises:
      UsageError: from ``next``, when more records were bad than that.
    """

    def __init__(
        self,
        samples: Samples,
        tokenizer: Tokenizer,
        tokens_per_image: Mapping[Role, int],
        shape: RowShape,
        *,
        batch_size: int,
        rows: Sequence[int],
        window: int,
        threads: int,
        read_ahead: int,
        max_bad_records: int,
        max_bad_share: float = 0.0,
        state: DataState | None = None,
        input_role: Role = Role.INPUT,
        request_dropout: float = 0.0,
        max_pixels: int = MAX_PIXELS,
        memory_bytes: int = 10**9,
    ):
        self._input_role = input_role
        self._request_dropout = request_dropout
        self._max_pixels = max_pixels
        self._samples = samples
        self._tokenizer = tokenizer
        self._tokens_per_image = tokens_per_image
        self._shape = shape
        self._max_bad_records = max_bad_records
        self._max_bad_share = max_bad_share
        state = state or initial_state(batch_size, window)
        self._skip_lock = threading.Lock()
        self._streams = [self._open(row, batch_size, window, state) for row in rows]
        skipped = stream_state(self._streams)["skipped"].sum(axis=0)
        self._skipped = collections.Counter(dict(zip(SKIP_REASONS, skipped.tolist(), strict=True)))
        self._buffers = Buffers()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rows")
        self._threads = threads
        if not read_ahead:
            size = batch_bytes(len(self._streams), shape)
            # One is in the making, and one in the hands of who asked for it.
            read_ahead = min(max(memory_bytes // size - 2, 1), _MOST_AHEAD)
        self._ready: queue.Queue[tuple[PackedBatch, DataState] | BaseException] = queue.Queue(read_ahead)
        self._stopped = threading.Event()
        self._producer = threading.Thread(target=self._produce, name="batches", daemon=True)
        self._producer.start()

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> tuple[PackedBatch, DataState]:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stops the threads; batches made ahead are dropped (they are not part of any saved state)."""
        self._stopped.set()
        while self._producer.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._producer.join(0.05)
        self._pool.shutdown(cancel_futures=True)

    def _open(self, row: int, batch_size: int, window: int, state: DataState) -> RowStream:
        def position(count: int) -> int:
            return row + count * batch_size

        return RowStream(
            self._shape,
            window,
            fetch=lambda counts: self._fetch([position(count) for count in counts]),
            on_skip=lambda count, error: self._count_skip(position(count), error),
            drawn=int(state["drawn"][row]),
            pending=[int(count) for count in state["pending"][row] if count >= 0],
            skipped=[int(count) for count in state["skipped"][row]],
            group=_GROUP,
        )

    def _fetch(self, positions: Sequence[int]) -> list[Slots | InvalidRecord]:
        # One stage for all, then the next: what a stage needs stays in the processor's caches, and while one thread
        # decodes, which needs no lock of the interpreter, another reads.
        records = [_or_reason(self._record, position) for position in positions]
        planned = [
            record if isinstance(record, InvalidRecord) else _or_reason(self._plan, position, record)
            for position, record in zip(positions, records, strict=True)
        ]
        return [plan if isinstance(plan, InvalidRecord) else _or_reason(self._decode, plan) for plan in planned]

    def _record(self, position: int) -> Mapping[str, Any]:
        try:
            return self._samples[position]
        except (OSError, RuntimeError, KeyError) as error:
            raise _unreadable(error) from error
        except ValueError as error:
            if isinstance(error, InvalidRecord):
                raise
            raise _unreadable(error) from error

    def _plan(self, position: int, record: Mapping[str, Any]) -> Planned:
        try:
            return plan_sample(
                record,
                self._tokenizer,
                self._tokens_per_image,
                input_role=self._input_role,
                drop_request=self._drops(position),
                room=(self._shape.slots, self._shape.images),
            )
        except InvalidRecord:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _malformed(error) from error

    def _decode(self, planned: Planned) -> Slots:
        try:
            return planned.decode(self._shape.image_size, self._max_pixels)
        except TypeError as error:  # an image that is no bytes
            raise _malformed(error) from error

    def _drops(self, position: int) -> bool:
        if not self._request_dropout:
            return False
        return np.random.default_rng([_DROPOUT_STREAM, position]).random() < self._request_dropout

    def _count_skip(self, position: int, error: InvalidRecord) -> None:
        log.warning("skipped sample %d (%s): %s", position, error.reason, error)
        with self._skip_lock:
            self._skipped[error.reason] += 1
            drawn = sum(stream.drawn for stream in self._streams)
            if self._skipped.total() > self._max_bad_records + self._max_bad_share * drawn:
                counts = ", ".join(f"{count} {reason}" for reason, count in self._skipped.most_common() if count)
                raise UsageError(
                    f"{self._skipped.total()} records were skipped ({counts}) of {drawn:,}, more than "
                    f"config.data.max_bad_records={self._max_bad_records} and config.data.max_bad_share="
                    f"{self._max_bad_share} allow; the last one: sample {position}: {error}"
                )

    def _produce(self) -> None:
        try:
            while not self._stopped.is_set():
                self._offer(self._batch())
        except BaseException as error:  # handed to the consumer, who raises it
            self._offer(error)

    def _offer(self, item: tuple[PackedBatch, DataState] | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _batch(self) -> tuple[PackedBatch, DataState]:
        side, count = self._shape.image_size, len(self._streams)
        images = self._buffers.take((count, self._shape.images, side, side, 3))
        batch = empty_batch(count, self._shape, images)
        todo = iter(range(count))  # each row goes to whichever thread is free

        def make(_: int) -> None:
            for index in todo:
                fill(batch, index, self._streams[index].next_row(), self._shape)

        list(self._pool.map(make, range(self._threads)))
        state = stream_state(self._streams)
        batch["skipped"] = state["skipped"]
        return batch, state


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
