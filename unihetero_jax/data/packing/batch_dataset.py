"""Packed batches as a grain dataset: its iterator carries the data state, so that transformations compose with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from unihetero_jax.data.packing.batch_stream import BatchStream
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.data.packing.row_stream import DataState, initial_state
from unihetero_jax.errors import UsageError

OpenStream = Callable[[Sequence[int], DataState], BatchStream]


class PackedBatches(grain.IterDataset):
    """Packed batches of some rows of the global batch: mappings of arrays, endless.

    Args:
        samples: The dataset of the records.
        open_stream: Opens the stream of some rows, from a data state of all B rows on.
        rows: Numbers of the rows.
        batch_size: B, rows of the global batch.
        window: Samples of a row that may wait for a later one.
    """

    def __init__(
        self, samples: grain.MapDataset, open_stream: OpenStream, rows: Sequence[int], batch_size: int, window: int
    ):
        super().__init__(samples)
        self._given = (open_stream, list(rows), batch_size, window)

    def __iter__(self) -> PackedBatchIterator:
        return PackedBatchIterator(*self._given)


class PackedBatchIterator(grain.DatasetIterator):
    """Iterator over packed batches, whose state is the data state; see `PackedBatches`."""

    def __init__(self, open_stream: OpenStream, rows: Sequence[int], batch_size: int, window: int):
        super().__init__()
        self._open_stream, self._rows = open_stream, list(rows)
        self._state = initial_state(batch_size, window)
        self._stream: BatchStream | None = None
        self._is_closed = False

    def __next__(self) -> PackedBatch:
        batch, state = next(self._opened())
        for name, array in state.items():
            self._state[name][self._rows] = array
        return batch

    def start_prefetch(self) -> None:
        """Begin to make batches, before the first one is asked for."""
        self._opened()

    def get_state(self) -> DataState:
        """Return the data state after the last batch: integers by name, for all B rows of the global batch.

        Those of rows that are made elsewhere are as they were given.
        """
        return {name: array.copy() for name, array in self._state.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue after another batch, which any number of hosts and workers may have made.

        Args:
            state: From ``get_state``, also as nested lists.

        Raises:
            UsageError: It is the state of another batch size or packing window.
        """
        found = {name: np.array(state.get(name, ()), np.int32) for name in self._state}
        for name, array in self._state.items():
            # A state may have been saved when there were fewer reasons to skip a record.
            columns = found[name].shape[1:] if name == "skipped" and found[name].ndim == 2 else array.shape[1:]
            if found[name].shape != (len(array), *columns):
                raise UsageError(
                    f"the data state has {name!r} of shape {list(found[name].shape)}: expected {list(array.shape)}, as "
                    "for config.train.batch_size and config.data.packing_window"
                )
        skipped = np.zeros_like(self._state["skipped"])
        skipped[:, : found["skipped"].shape[1]] = found["skipped"]
        self._stop()
        self._state = {**found, "skipped": skipped}

    def close(self) -> None:
        """End the threads and processes that prepare batches."""
        super().close()
        self._is_closed = True
        self._stop()

    def _opened(self) -> BatchStream:
        if self._is_closed:
            raise ValueError("these batches were closed")
        if self._stream is None:
            self._stream = self._open_stream(self._rows, self.get_state())
        return self._stream

    def _stop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
