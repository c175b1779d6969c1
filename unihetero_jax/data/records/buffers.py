"""Memory for what is needed for a moment, used again and again.

Memory that nobody touched before costs a page fault every 4 kB; those of a picture can take as long as decoding it.
"""

from __future__ import annotations

import threading

import numpy as np

_SCRATCH_BYTES = 64 << 20


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
