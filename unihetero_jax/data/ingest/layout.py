"""Decide which records go into which shard, and which duplicate an earlier one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Digests that are sorted at once; with its position, each takes 32 bytes.
_AT_ONCE = 8_000_000


class Stretch(NamedTuple):
    """Records ``start`` to ``stop`` of the piece of a unit."""

    unit: int
    start: int
    stop: int


def duplicates(
    counts: Sequence[int], digests: Callable[[int], np.ndarray], at_once: int = _AT_ONCE
) -> list[np.ndarray]:
    """Return the records of each piece that duplicate an earlier one.

    One range of digests is sorted after the other, so that 200 million need no more memory than ``at_once`` do.

    Args:
        counts: Records of each piece, in order.
        digests: Returns the digests of a piece, [records, 2] uint64.
        at_once: Approximate number of digests to sort at once.

    Returns:
        For each piece, the sorted indices of the records to leave out.
    """
    rounds = max(1, -(-sum(counts) // at_once))
    starts = np.cumsum([0, *counts])
    found = []
    for number in range(rounds):
        values, positions = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
        for piece, start in enumerate(starts[:-1]):
            part = digests(piece)
            chosen = np.flatnonzero(part[:, 0] % np.uint64(rounds) == number)
            values.append(np.asarray(part[chosen]))
            positions.append(chosen + start)
        found.append(_repeated(np.concatenate(values), np.concatenate(positions)))
    dropped = np.sort(np.concatenate(found))
    bounds = np.searchsorted(dropped, starts)
    return [dropped[a:b] - start for a, b, start in zip(bounds[:-1], bounds[1:], starts[:-1], strict=True)]


def _repeated(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the positions, which ascend, of all but the first of each value."""
    # A stable sort, so that the first of equal values stays first.
    order = np.lexsort((values[:, 1], values[:, 0]))
    ordered = values[order]
    same = np.all(ordered[1:] == ordered[:-1], axis=1)
    return positions[order[1:][same]]


def shards(units: Sequence[int], sizes: Callable[[int], np.ndarray], shard_bytes: int) -> list[list[Stretch]]:
    """Divide the records of a split into shards of similar size, each of consecutive records.

    Args:
        units: Units whose pieces have records of the split, in order.
        sizes: Returns the sizes of a piece's records, 0 for those to leave out; called twice per piece.
        shard_bytes: Approximate bytes of the records in a shard.

    Returns:
        The stretches of each shard, which has at least one record.
    """
    total = sum(int(sizes(unit).sum(dtype=np.int64)) for unit in units)
    # Even shards: half a shard at the end would be read as often as the others.
    count = max(1, -(-total // shard_bytes))
    shards: list[list[Stretch]] = [[] for _ in range(count)]
    before = 0
    for unit in units:
        own = sizes(unit).astype(np.int64)
        if not own.any():
            continue
        starts = before + np.cumsum(own) - own
        shard = np.minimum(starts * count // total, count - 1)
        cuts = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(own)]
        for start, stop in itertools.pairwise(cuts):
            if own[start:stop].any():
                shards[int(shard[start])].append(Stretch(unit, start, stop))
        before += int(own.sum())
    return [stretches for stretches in shards if stretches]
