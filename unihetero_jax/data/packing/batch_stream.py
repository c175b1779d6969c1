"""Packed batches out of a mixture: row streams, made ahead of time by threads or processes; the data state.

grain's own packer and iterator state depend on the number of processes and workers; ours are per row.
"""

from __future__ import annotations

import collections
import logging
import queue
import threading
from collections.abc import Mapping, Sequence

from unihetero_jax.data.packing.row_stream import DataState, PackedBatch, RowShape, batch_bytes, initial_state
from unihetero_jax.data.packing.rows import OnSkip, Recipe, Rows, Samples, Skip
from unihetero_jax.data.packing.sample import Role
from unihetero_jax.data.packing.shared_batches import Layout, Ring
from unihetero_jax.data.packing.worker_rows import IN_WORK, WorkerLost, WorkerRows
from unihetero_jax.data.records.images import MAX_PIXELS
from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

log = logging.getLogger(__name__)

# A batch is ready long before as many are; more would only take memory and, after a restart, be made again.
_MOST_AHEAD = 8


class BatchStream:
    """Packed batches of some rows of the global batch, made ahead of time by threads or by worker processes.

    Iterating gives ``(batch, state)``: the arrays of these rows, and the data state after them. Nothing that the model
    sees depends on ``workers``, ``threads`` or ``read_ahead``, nor on which rows are asked for where.

    Args:
      samples: position → record, endless. With workers, it is pickled.
      tokenizer: of the model.
      tokens_per_image: visual tokens of the tower that serves each role.
      shape: of a row.
      batch_size: B, rows of the global batch.
      rows: the rows to make here.
      window: samples that a row may hold back for a later one.
      threads: that read and decode, in each process that does.
      read_ahead: batches made before they are asked for; 0: as many as fit in memory, from 1 to 8.
      max_bad_records: records of these rows that may be skipped before the stream stops.
      max_bad_share: and this share of those drawn.
      state: of all B rows, as saved; None starts anew.
      input_role: of images that are shown.
      request_dropout: share of the requests for a picture whose words are left out; which ones depends on the position
        alone.
      max_pixels: that an image may have to be decoded.
      memory_bytes: that batches made ahead may take, where ``read_ahead`` is 0.
      workers: processes that make the rows, each its own part of every batch; 0: threads of this one do.

    Raises:
      UsageError: from ``next``, when more records were bad than that.
      WorkerLost: from ``next``, when a worker process has ended.
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
        workers: int = 0,
    ):
        recipe = Recipe(
            samples,
            tokenizer,
            tokens_per_image,
            shape,
            batch_size,
            window,
            input_role=input_role,
            request_dropout=request_dropout,
            max_pixels=max_pixels,
        )
        state = state or initial_state(batch_size, window)
        skips = _Skips(state["skipped"][list(rows)].sum(axis=0).tolist(), max_bad_records, max_bad_share)
        self._maker: _RowsHere | WorkerRows
        if workers:
            self._maker = WorkerRows(recipe, rows, workers, threads, state, skips.count)
        else:
            self._maker = _RowsHere(recipe, rows, threads, state, skips.count)
        if not read_ahead:
            # Some are in the making, and one in the hands of who asked for it.
            making = IN_WORK if workers else 1
            read_ahead = min(max(memory_bytes // batch_bytes(len(rows), shape) - making - 1, 1), _MOST_AHEAD)
        self._ready: queue.Queue[tuple[PackedBatch, DataState] | BaseException] = queue.Queue(read_ahead)
        self._lost: WorkerLost | None = None
        self._stopped = threading.Event()
        self._producer = threading.Thread(target=self._produce, name="batches", daemon=True)
        self._producer.start()

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> tuple[PackedBatch, DataState]:
        if self._lost is not None:  # before what was made ahead: the sooner it is known, the better
            raise self._lost
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # for whoever asks again
            raise item
        return item

    def close(self) -> None:
        """Stops the threads and processes; batches made ahead are dropped (they are not part of any saved state)."""
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
        except BaseException as error:  # handed to the consumer, who raises it
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
        # Memory that nobody touched before costs a page fault every 4 kB; those of a picture can take as long as
        # decoding it. So here, too, batches take turns in the same memory.
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
    """Counts the records that were left out, and stops at too many.

    Args:
      before: how many of each reason were, when the stream began.
      most: allowed.
      share: of those drawn, allowed besides.
    """

    def __init__(self, before: Sequence[int], most: int, share: float):
        self._counts = collections.Counter(dict(zip(SKIP_REASONS, before, strict=False)))
        self._most, self._share = most, share
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
