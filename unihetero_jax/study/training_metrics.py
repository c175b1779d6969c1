"""What a run's ``metrics.jsonl`` says of its training, such as the angle between the objectives' gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unihetero_jax.files import json_rows

# As ``train.gradients`` names them; not imported, because a report needs no JAX.
_COSINE, _NORM = "gradient_cosine/", "gradient_norm/"


def rows(metrics: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.jsonl``, one per step; none where there is no such file."""
    return [row for row in json_rows(metrics) if "step" in row]


def gradient_cosines(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, cosine) by pair of objectives and layer, where both objectives reach the layer."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows(metrics):
        for name, value in row.items():
            if name.startswith(_COSINE):
                pair, _, layer = name.removeprefix(_COSINE).partition("/")
                norms = [row.get(f"{_NORM}{one}/{layer}", 0.0) for one in pair.split("_")]
                if all(isinstance(norm, float) and norm > 0 for norm in norms) and isinstance(value, float):
                    found.setdefault(f"{pair.replace('_', ' · ')}, layer {layer}", []).append((int(row["step"]), value))
    return found


def summary(metrics: Path) -> dict[str, Any]:
    """Summarize a training as scores that claims can use.

    Returns:
      ``gradient_cosine``: mean over the training and all layers, by pair of objectives; its ``text_drawn`` is that of
      the text loss with every other objective. ``target_variance`` and ``target_cosine``: mean over the last tenth of
      the training. Each only where it was measured.
    """
    found: dict[str, Any] = {}
    by_pair: dict[str, list[float]] = {}
    for name, line in gradient_cosines(metrics).items():
        pair = name.partition(",")[0].replace(" · ", "_")
        values = [value for _, value in line]
        by_pair.setdefault(pair, []).extend(values)
        if pair.startswith("text_"):
            by_pair.setdefault("text_drawn", []).extend(values)
    if by_pair:
        found["gradient_cosine"] = {pair: float(np.mean(values)) for pair, values in by_pair.items()}
    everything = rows(metrics)
    last = everything[-max(1, len(everything) // 10) :]
    for name in ("target_variance", "target_cosine"):
        if values := [row[name] for row in last if name in row]:
            found[name] = float(np.mean(values))
    return found
