"""Packed batches in memory that processes share: a ring of slots, a batch each, that has no name in any file system.

Whoever has the descriptor maps the slots; with the last process that does, the memory is gone, however that ends.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile

import numpy as np

from unihetero_jax.data.packing.row_stream import DataState, PackedBatch, RowShape, empty_batch, initial_state

# Of an array's beginning: what a vector register holds, and what XLA takes over without a copy.
_ALIGNMENT = 64


class Layout:
    """Where the arrays of a batch, and the state after it, lie in a slot.

    Args:
      rows: of a batch here.
      shape: of a row.
      window: of the data state.
    """

    def __init__(self, rows: int, shape: RowShape, window: int):
        self._places: dict[str, tuple[int, tuple[int, ...], np.dtype]] = {}
        self.bytes = 0
        row = empty_batch(1, shape)
        row_state = initial_state(1, window)
        for name, array in (*row.items(), *((f"state/{name}", array) for name, array in row_state.items())):
            made = (rows, *array.shape[1:])
            self._places[name] = (self.bytes, made, array.dtype)
            self.bytes += _up(math.prod(made) * array.dtype.itemsize, _ALIGNMENT)
        self.bytes = _up(self.bytes, mmap.PAGESIZE)

    def arrays(self, slot: np.ndarray) -> tuple[PackedBatch, DataState]:
        """Views of a slot's bytes, uint8 [bytes]."""
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
    """Slots, mapped when they are first asked for.

    Args:
      memory: the descriptor of the memory that holds them.
      size: bytes of each.
    """

    def __init__(self, memory: int, size: int):
        self._memory, self._size = memory, size
        self._slots: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> np.ndarray:
        """The bytes of a slot that is there, uint8 [bytes]."""
        if number not in self._slots:
            # All of them at once: a page fault every 4 kB would take half as long as decoding what comes there.
            how = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # which macOS does not have
            pages = mmap.mmap(self._memory, self._size, how, offset=number * self._size)
            self._slots[number] = np.frombuffer(pages, np.uint8)
        return self._slots[number]

    def is_free(self, number: int) -> bool:
        """Whether nothing refers to the slot's bytes, or to a view of them."""
        return sys.getrefcount(self._slots[number]) == _FREE


def _references_when_free() -> int:
    """References to a slot that nobody uses, as ``is_free`` counts them; interpreters differ."""
    mapped = Mapped(-1, 0)
    mapped._slots[0] = np.empty(0, np.uint8)
    return sys.getrefcount(mapped._slots[0])


_FREE = _references_when_free()


class Ring:
    """As many slots as are in use at a time, in memory made here.

    Args:
      layout: of a slot.
    """

    def __init__(self, layout: Layout):
        self._layout = layout
        self.memory = _nameless()
        self._mapped = Mapped(self.memory, layout.bytes)
        self._made: set[int] = set()  # slots that are being filled, here or elsewhere
        self._count = 0

    def take(self) -> int:
        """A slot whose batch nobody refers to any more, or a new one; until ``arrays`` it is not taken again."""
        for number in range(self._count):
            if number not in self._made and self._mapped.is_free(number):
                break
        else:
            number = self._count
            os.ftruncate(self.memory, (number + 1) * self._layout.bytes)
            self._count += 1
            self._mapped[number]
        self._made.add(number)
        return number

    def arrays(self, number: int) -> tuple[PackedBatch, DataState]:
        """The batch in a slot, now full, without a copy; and a copy of the state after it."""
        self._made.remove(number)
        batch, state = self._layout.arrays(self._mapped[number])
        return batch, {name: array.copy() for name, array in state.items()}

    def close(self) -> None:
        """Makes no more slots; the memory stays for as long as somebody refers to a batch."""
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


def _nameless() -> int:
    """A descriptor of memory without a name; on macOS, of a file that has lost its name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("packed batches")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
