"""Name maps: which of their tensors is which of our parameters, and how it lies there, in both directions.

L layers, D width, H heads (or key/value heads), C head width, V vocabulary. A torch linear keeps [out, in], ours
[in, out], with the heads as an axis of their own. Our layers are stacked: a tensor of theirs is one row of [L, …].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]
# Where a parameter is in nested dicts; an entry of a list has its number.
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Layout:
    """How one of their tensors lies in ours. ``shape`` gives theirs for ours; the two maps give views, not copies."""

    shape: Callable[[Shape], Shape]
    to_ours: Callable[[np.ndarray, Shape], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda shape: shape, lambda array, shape: array, lambda array: array)

MATRIX = Layout(lambda shape: shape[::-1], lambda array, shape: array.T, lambda array: array.T)
"""[in, out] of [out, in]."""

HEADS_OUT = Layout(
    lambda shape: (shape[1] * shape[2], shape[0]),
    lambda array, shape: array.T.reshape(shape),
    lambda array: array.reshape(array.shape[0], -1).T,
)
"""[D, H, C] of [H·C, D]."""

HEADS_IN = Layout(
    lambda shape: (shape[2], shape[0] * shape[1]),
    lambda array, shape: array.T.reshape(shape),
    lambda array: array.reshape(-1, array.shape[-1]).T,
)
"""[H, C, D] of [D, H·C]."""

HEADS_VECTOR = Layout(
    lambda shape: (shape[0] * shape[1],), lambda array, shape: array.reshape(shape), lambda array: array.reshape(-1)
)
"""[H, C] of [H·C]."""

CONVOLUTION = Layout(
    lambda shape: (shape[3], shape[2], *shape[:2]),
    lambda array, shape: array.transpose(2, 3, 1, 0),
    lambda array: array.transpose(3, 2, 0, 1),
)
"""[height, width, in, out] of [out, in, height, width]."""

POINTWISE = Layout(
    lambda shape: (*shape[::-1], 1, 1),
    lambda array, shape: array.reshape(shape[::-1]).T,
    lambda array: array.T[..., None, None],
)
"""[in, out] of a 1 × 1 convolution's [out, in, 1, 1]."""


@dataclass(frozen=True)
class Rule:
    """One line of a name map. ``theirs`` has ``{}`` for the layer's number where ``ours`` is a stack of layers.

    ``vocabulary``: the axis of our array whose entries are token ids, of which we may have more than they.
    """

    theirs: str
    ours: Path_
    layout: Layout
    vocabulary: int | None = None

    @property
    def stacked(self) -> bool:
        """Whether our parameter holds every layer."""
        return "{}" in self.theirs


@dataclass(frozen=True)
class Slot:
    """Where one of their tensors goes: ``layer`` of the parameter at ``path``, or all of it."""

    path: Path_
    layer: int | None
    shape: Shape
    rule: Rule


def slots(rules: list[Rule], params: Any) -> dict[str, Slot]:
    """For each name of theirs, where it goes.

    Args:
      rules: the name map.
      params: nested dicts of arrays or shape structs, ours; ``shape`` of a slot is without the layers.

    Raises:
      ValueError: the map and our parameters do not cover each other (a mistake in the map).
    """
    ours = dict(_leaves(params))
    found: dict[str, Slot] = {}
    for rule in rules:
        shape = tuple(ours.pop(rule.ours).shape)
        if rule.stacked:
            for layer in range(shape[0]):
                found[rule.theirs.format(layer)] = Slot(rule.ours, layer, shape[1:], rule)
        else:
            found[rule.theirs] = Slot(rule.ours, None, shape, rule)
    if ours:
        raise ValueError(f"the name map has nothing for {', '.join('.'.join(map(str, path)) for path in ours)}")
    return found


def _leaves(tree: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, (*path, name))
    else:
        yield path, tree


class MoreEntries:
    """An array with entries appended along one axis, each the mean of those there; sliced without being made whole.

    Args:
      array: of any floating type.
      axis: along which.
      size: of that axis, at least the array's.
    """

    def __init__(self, array: np.ndarray, axis: int, size: int):
        self.shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
        self._array, self._axis = array, axis
        moved = np.moveaxis(array, axis, 0)
        total = np.zeros(moved.shape[1:], np.float64)
        # In pieces: the float64 copy of a whole table would be several times its size.
        for start in range(0, len(moved), 4096):
            total += moved[start : start + 4096].astype(np.float32).sum(axis=0, dtype=np.float64)
        self._mean = (total / len(moved)).astype(array.dtype)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[self._axis].indices(self.shape[self._axis])
        count = self._array.shape[self._axis]
        inner = list(index)
        inner[self._axis] = slice(min(start, count), min(stop, count))
        others = tuple(part for axis, part in enumerate(index) if axis != self._axis)
        known = self._array[tuple(inner)]
        new = stop - max(start, count)
        if new <= 0:
            return known
        mean = np.expand_dims(self._mean[others], self._axis)
        return np.concatenate([known, np.repeat(mean, new, axis=self._axis)], axis=self._axis)
