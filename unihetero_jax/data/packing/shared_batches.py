"""Packed batches in memory that processes share: a ring of slots, one batch each, without a name in any file system.

A process that has the descriptor maps the slots; the memory is freed with the last such process, however it ends.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile

import numpy as np

from unihetero_jax.data.packing.packed_batch import PackedBatch, RowShape, empty_batch
from unihetero_jax.data.packing.row_stream import DataState, initial_state

# Alignment of an array's start: that of a vector register, which lets XLA use the memory without a copy.
_ALIGNMENT = 64


class Layout:
    """Offsets in a slot of the arrays of a batch and of the state after it.

    Args:
        rows: Rows of a batch in this memory.
        shape: Shape of a row.
        window: Window of the data state.
    """

    def __init__(self, rows: int, shape: RowShape, window: int):
        self._places: dict[str, tuple[int, tuple[int, ...], np.dtype]] = {}
        self.bytes = 0
        row = empty_batch(1, shape)
        row_state = initial_state(1, window)
        for name, array in (*row.items(), *((f"state/{name}", array) for name, array in row_state.items())):
            full = (rows, *array.shape[1:])
            self._places[name] = (self.bytes, full, array.dtype)
            self.bytes += _up(math.prod(full) * array.dtype.itemsize, _ALIGNMENT)
        self.bytes = _up(self.bytes, mmap.PAGESIZE)

    def arrays(self, slot: np.ndarray) -> tuple[PackedBatch, DataState]:
        """Return batch and state as views of a slot's bytes, uint8 [bytes]."""
        batch: PackedBatch = {}
        state: DataState = {}
        for name, (offset, shape, dtype) in self._places.items():
            size = math.prod(shape) * dtype.itemsize
            array = slot[offset : offset + size].view(dtype).reshape(shape)
            if name.startswith("state/"):
                state[name.removeprefix("state/")] = array
            else:
                batch[name] = array
        return batch, state


class Mapped:
    """Slots of shared memory, mapped when first used.

    Args:
        memory: Descriptor of the memory.
        size: Bytes per slot.
    """

    def __init__(self, memory: int, size: int):
        self._memory, self._size = memory, size
        self._slots: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> np.ndarray:
        """Return the bytes of an existing slot, uint8 [bytes]."""
        if number not in self._slots:
            # Populated at once: a page fault every 4 kB would take half as long as decoding the images.
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # macOS lacks it
            pages = mmap.mmap(self._memory, self._size, flags, offset=number * self._size)
            self._slots[number] = np.frombuffer(pages, np.uint8)
        return self._slots[number]

    def is_free(self, number: int) -> bool:
        """Return whether nothing refers to the slot's bytes or to a view of them."""
        return sys.getrefcount(self._slots[number]) == _FREE


def _references_when_free() -> int:
    """Count the references to an unused slot as ``is_free`` does; interpreters differ."""
    mapped = Mapped(-1, 0)
    mapped._slots[0] = np.empty(0, np.uint8)
    return sys.getrefcount(mapped._slots[0])


_FREE = _references_when_free()


class Ring:
    """Shared memory with as many slots as are in use at a time.

    Args:
        layout: Layout of a slot.
    """

    def __init__(self, layout: Layout):
        self._layout = layout
        self.memory = _anonymous_memory()
        self._mapped = Mapped(self.memory, layout.bytes)
        self._filling: set[int] = set()  # slots that are being filled, by any process
        self._count = 0

    def take(self) -> int:
        """Reserve a slot whose batch nobody refers to any more, or a new one, until ``arrays`` is called."""
        for number in range(self._count):
            if number not in self._filling and self._mapped.is_free(number):
                break
        else:
            number = self._count
            os.ftruncate(self.memory, (number + 1) * self._layout.bytes)
            self._count += 1
            self._mapped[number]
        self._filling.add(number)
        return number

    def arrays(self, number: int) -> tuple[PackedBatch, DataState]:
        """Return the batch of a slot, which is now filled, without a copy, and a copy of the state after it."""
        self._filling.remove(number)
        batch, state = self._layout.arrays(self._mapped[number])
        return batch, {name: array.copy() for name, array in state.items()}

    def close(self) -> None:
        """Make no more slots; the memory stays as long as somebody refers to a batch."""
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


def _anonymous_memory() -> int:
    """Return a descriptor of memory without a name; on macOS, of a deleted file."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("packed batches")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
