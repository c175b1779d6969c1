"""Stream of packed batches, made ahead of time by threads or worker processes, with its data state.

grain's own packer and iterator state depend on the number of processes and workers; ours are per row.
"""

from __future__ import annotations

import collections
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from unihetero_jax.data.packing.packed_batch import PackedBatch, batch_bytes
from unihetero_jax.data.packing.row_stream import DataState, initial_state
from unihetero_jax.data.packing.rows import OnSkip, Recipe, Rows, Skip
from unihetero_jax.data.packing.rows_from_workers import IN_WORK, WorkerLost, WorkerRows
from unihetero_jax.data.packing.shared_batches import Layout, Ring
from unihetero_jax.data.records.invalid import FILTERED, SKIP_REASONS
from unihetero_jax.errors import UsageError

log = logging.getLogger(__name__)

# More batches would only take memory and, after a restart, be made again.
_MOST_AHEAD = 8


@dataclass(frozen=True)
class StreamOptions:
    """How batches are made; none of these options changes their content.

    Attributes:
        workers: Processes that make the rows, each its own part of every batch; 0: threads of this process.
        threads: Threads that read and decode, in each process that makes rows.
        read_ahead: Batches made before they are asked for; 0: as many as fit ``memory_bytes``, from 1 to 8.
        memory_bytes: Memory for batches made ahead, where ``read_ahead`` is 0.
        max_bad_records: Records of these rows that may be skipped before the stream stops.
        max_bad_share: Share of the drawn records that may be skipped besides.
    """

    workers: int = 0
    threads: int = 1
    read_ahead: int = 0
    memory_bytes: int = 10**9
    max_bad_records: int = 0
    max_bad_share: float = 0.0


class BatchStream:
    """Packed batches of some rows of the global batch, made ahead of time by threads or by worker processes.

    Iterating gives ``(batch, state)``: the arrays of these rows, and the data state after them. The batches depend
    neither on ``options`` nor on which rows are made where.

    Args:
        recipe: What the rows are made of. With workers, it is pickled.
        rows: Numbers of the rows to make here.
        options: How they are made.
        state: Saved data state of all B rows; None starts anew.

    Raises:
        UsageError: From ``next``, when more records were bad than allowed.
        WorkerLost: From ``next``, when a worker process has ended.
    """

    def __init__(
        self, recipe: Recipe, rows: Sequence[int], options: StreamOptions | None = None, state: DataState | None = None
    ):
        options = options or StreamOptions()
        state = state or initial_state(recipe.batch_size, recipe.window)
        skips = _Skips(state["skipped"][list(rows)].sum(axis=0).tolist(), options)
        self._maker: _RowsHere | WorkerRows
        if options.workers:
            self._maker = WorkerRows(recipe, rows, options.workers, options.threads, state, skips.count)
        else:
            self._maker = _RowsHere(recipe, rows, options.threads, state, skips.count)
        ahead = options.read_ahead
        if not ahead:
            # Besides those that are ready, some batches are being made, and the consumer has one.
            others = (IN_WORK if options.workers else 1) + 1
            ahead = min(max(options.memory_bytes // batch_bytes(len(rows), recipe.shape) - others, 1), _MOST_AHEAD)
        self._ready: queue.Queue[tuple[PackedBatch, DataState] | BaseException] = queue.Queue(ahead)
        self._lost: WorkerLost | None = None
        self._stopped = threading.Event()
        self._producer = threading.Thread(target=self._produce, name="batches", daemon=True)
        self._producer.start()

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> tuple[PackedBatch, DataState]:
        if self._lost is not None:  # raised before the batches made ahead are used up: the sooner the better
            raise self._lost
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # for the next call
            raise item
        return item

    def close(self) -> None:
        """Stop the threads and processes; batches made ahead are dropped (they are not part of any saved state)."""
        self._stopped.set()
        if isinstance(self._maker, WorkerRows):
            self._maker.close()
        while self._producer.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._producer.join(0.05)
        self._maker.close()

    def _produce(self) -> None:
        try:
            while not self._stopped.is_set():
                self._offer(self._maker.make())
        except BaseException as error:  # raised again in the consumer
            if isinstance(error, WorkerLost):
                self._lost = error
            self._offer(error)
            self._maker.close()

    def _offer(self, item: tuple[PackedBatch, DataState] | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue


class _RowsHere:
    """Rows made by threads of this process."""

    def __init__(self, recipe: Recipe, rows: Sequence[int], threads: int, state: DataState, on_skip: OnSkip):
        self._rows = Rows(recipe, rows, threads, state, on_skip)
        self._indices = range(len(rows))
        # Fresh memory costs a page fault every 4 kB, which for an image can take as long as decoding it: batches use
        # the same memory in turns.
        self._ring = Ring(Layout(len(rows), recipe.shape, recipe.window))

    def make(self) -> tuple[PackedBatch, DataState]:
        number = self._ring.take()
        batch, _ = self._ring.arrays(number)
        self._rows.make(batch, self._indices)
        state = self._rows.state()
        batch["skipped"] = state["skipped"]
        return batch, state

    def close(self) -> None:
        self._rows.close()
        self._ring.close()


class _Skips:
    """Counts bad records, and stops at too many.

    Args:
        before: Counts by reason when the stream began.
        options: The limits.
    """

    def __init__(self, before: Sequence[int], options: StreamOptions):
        self._counts = collections.Counter(dict(zip(SKIP_REASONS, before, strict=False)))
        del self._counts[FILTERED]  # no bad records
        self._most, self._share = options.max_bad_records, options.max_bad_share
        self._lock = threading.Lock()

    def count(self, skip: Skip) -> None:
        log.warning("skipped sample %d (%s): %s", skip.position, skip.reason, skip.message)
        with self._lock:
            self._counts[skip.reason] += 1
            if self._counts.total() > self._most + self._share * skip.drawn:
                counts = ", ".join(f"{count} {reason}" for reason, count in self._counts.most_common() if count)
                raise UsageError(
                    f"{self._counts.total()} records were skipped ({counts}) of {skip.drawn:,}, more than "
                    f"config.data.max_bad_records={self._most} and config.data.max_bad_share="
                    f"{self._share} allow; the last one: sample {skip.position}: {skip.message}"
                )
