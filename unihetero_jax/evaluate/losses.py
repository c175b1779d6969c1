"""Teacher-forced losses on held-out rows, and how well each visual position is predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unihetero_jax.config.components import EVALUATORS, EvaluatorConfig
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.evaluate.base import Context, Result
from unihetero_jax.evaluate.common import held_out

LossSums = Callable[[PackedBatch], Mapping[str, np.ndarray]]
"""A packed batch → ``NAME_sum`` and ``NAME_weight`` of each loss; and of each visual position, [N], ``cosine_sum`` and
``cosine_weight``, if the model predicts embeddings."""


@dataclass(frozen=True)
class LossesConfig(EvaluatorConfig):
    """Losses on held-out rows: of ``config.evaluate.images`` samples per side (understanding, generation)."""


@EVALUATORS.register("losses", config=LossesConfig)
def evaluate(config: LossesConfig, context: Context) -> Result:
    """Measure the mean of each loss over the test splits, per side."""
    del config
    rows = held_out.packed_rows(context.config, context.data_root, context.predictor.tokenizer)
    found = {side: means(context.predictor.held_out, batches) for side, batches in rows.items()}
    return Result(found, table(found) if found else ())


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines for the screen."""
    lines = [f"{'held-out rows':<22}{''.join(f'{side:>15}' for side in found)}"]
    for name in dict.fromkeys(name for side in found.values() for name, value in side.items() if np.ndim(value) == 0):
        cells = (f"{side[name]:.4f}" if name in side else "" for side in found.values())
        lines.append(f"  {name:<20}{''.join(f'{cell:>15}' for cell in cells)}".rstrip())
    return lines


def means(loss_sums: LossSums, batches: Iterable[PackedBatch]) -> dict[str, Any]:
    """The mean of each loss over all batches, by weight.

    Args:
      loss_sums: the predict function.
      batches: packed rows of a test split.

    Returns:
      Each loss that the model has and the rows have weight for, ``cosine`` of predicted and true embeddings, and
      ``cosine_by_position``, a list of N numbers in reading order of the patches.
    """
    sums: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, value in loss_sums(batch).items():
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
