"""Random choices of a dataset that is made: the same for the same seed, whatever NumPy is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """Random choices that depend on ``(seed, index, stream)`` only.

    Built on the raw words of PCG64, which NumPy promises never to change; what `numpy.random.Generator` makes of them
    may differ between releases (NEP 19), and a dataset must not.
    """

    def __init__(self, seed: int, index: int, stream: int):
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index, stream)))

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound)."""
        return (int(self._bits.random_raw()) * bound) >> 64

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return int(self._bits.random_raw()) < int(probability * 2**64)

    def choose(self, options: Sequence[T]) -> T:
        """One of the options, each as likely."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """The options in a uniformly random order (Fisher-Yates)."""
        order = list(options)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order
