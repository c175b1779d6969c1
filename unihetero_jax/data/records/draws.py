"""Random choices for synthetic datasets: the same for the same seed with every release of NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """Random choices that depend on ``(seed, index, stream)`` only.

    Built on the raw words of PCG64, which NumPy promises never to change. The methods of `numpy.random.Generator` may
    change between releases (NEP 19), which would change the dataset.
    """

    def __init__(self, seed: int, index: int, stream: int):
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index, stream)))

    def below(self, bound: int) -> int:
        """Return a uniform integer in [0, bound)."""
        return (int(self._bits.random_raw()) * bound) >> 64

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return int(self._bits.random_raw()) < int(probability * 2**64)

    def choose(self, options: Sequence[T]) -> T:
        """Return one of the options, all equally likely."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Return the options in a uniformly random order (Fisher-Yates)."""
        order = list(options)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order
