"""Arrays that are used again.

Memory that nobody touched before costs a page fault every 4 kB; those of a picture can take as long as decoding it.
"""

from __future__ import annotations

import collections
import sys
import threading

import numpy as np

# Arrays of a pool are handed out in turns: those of pictures that are in use are at its end.
_TRIED = 4
_SCRATCH_BYTES = 64 << 20


def _references_when_free() -> int:
    """References to an array that only a pool holds, as ``Buffers.take`` counts them; interpreters differ."""
    pool = collections.deque([np.empty(0, np.uint8)])
    array = pool[0]
    return sys.getrefcount(array)


_FREE = _references_when_free()


class Buffers:
    """A pool of arrays; one that was handed out comes back when nothing refers to it or to a view of it any more.

    For one thread; what it handed out may be dropped by any other.
    """

    def __init__(self) -> None:
        self._pools: dict[tuple[int, ...], collections.deque[np.ndarray]] = collections.defaultdict(collections.deque)

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of bytes, uint8, of any content."""
        pool = self._pools[shape]
        for _ in range(min(_TRIED, len(pool))):
            array = pool[0]
            pool.rotate(-1)
            if sys.getrefcount(array) == _FREE:
                return array
        array = np.empty(shape, np.uint8)
        pool.append(array)
        return array


class Scratch(threading.local):
    """An array of each thread, which its next call overwrites."""

    def __init__(self) -> None:
        self._array = np.empty(0, np.uint8)

    def take(self, size: int) -> np.ndarray:
        """At least ``size`` bytes, uint8 [n], of any content."""
        if size > _SCRATCH_BYTES:
            return np.empty(size, np.uint8)
        if size > len(self._array):
            self._array = np.empty(size, np.uint8)
        return self._array
