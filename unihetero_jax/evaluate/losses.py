"""Losses on held-out rows, teacher-forced; and how well each visual position is predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from unihetero_jax.data.packing.packed_batch import PackedBatch

HeldOut = Callable[[PackedBatch], Mapping[str, np.ndarray]]
"""A packed batch → ``NAME_sum`` and ``NAME_weight`` of each objective; and of each visual position, [N], ``cosine_sum``
and ``cosine_weight``, if the model predicts embeddings."""


def evaluate(held_out: HeldOut, rows: Mapping[str, Iterable[PackedBatch]]) -> dict[str, dict[str, Any]]:
    """The mean of each objective over all batches of a side, by weight.

    Args:
      held_out: the predict function.
      rows: packed rows of a test split, by side, as ``records.packed_rows`` gives them.

    Returns:
      By side: ``text``, ``semantic``, ``pixel`` (those that the model has and the rows have weight for), ``cosine`` of
      predicted and true embeddings, and ``cosine_by_position``, a list of N numbers in reading order of the patches.
    """
    return {side: _means(held_out, batches) for side, batches in rows.items()}


def _means(held_out: HeldOut, batches: Iterable[PackedBatch]) -> dict[str, Any]:
    sums: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, value in held_out(batch).items():
            sums[name] = sums.get(name, np.float64(0)) + np.asarray(value, np.float64)
    results: dict[str, Any] = {}
    for key in [name for name in sums if name.endswith("_sum")]:
        name = key.removesuffix("_sum")
        total, weight = sums[key], sums[f"{name}_weight"]
        if not weight.sum() > 0:
            continue
        results[name] = float(total.sum() / weight.sum())
        if total.ndim:
            results[f"{name}_by_position"] = (total / np.maximum(weight, 1e-30)).tolist()
    return results
