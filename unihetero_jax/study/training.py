"""What a run's ``metrics.jsonl`` says of its training: how the objectives' gradients stand to each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

# As ``train.gradients`` names them; not imported, because a report needs no JAX.
_COSINE, _NORM = "gradient_cosine/", "gradient_norm/"


def angles(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, cosine) by pair of objectives and layer; of those that both reach the layer."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in _rows(metrics):
        for name, value in row.items():
            if name.startswith(_COSINE):
                pair, _, layer = name.removeprefix(_COSINE).partition("/")
                norms = [row.get(f"{_NORM}{one}/{layer}", 0.0) for one in pair.split("_")]
                if all(isinstance(norm, float) and norm > 0 for norm in norms) and isinstance(value, float):
                    found.setdefault(f"{pair.replace('_', ' · ')}, layer {layer}", []).append((int(row["step"]), value))
    return found


def summary(metrics: Path) -> dict[str, Any]:
    """What claims may be about: numbers of the whole training, and of its last tenth.

    ``gradient_cosine``: over the training and all layers the mean of each two objectives, and ``text_drawn``: of the
    text loss with whatever else reaches the layers. ``target_variance`` and ``target_cosine``: over the last tenth.
    """
    found: dict[str, Any] = {}
    by_pair: dict[str, list[float]] = {}
    for name, line in angles(metrics).items():
        pair = name.partition(",")[0].replace(" · ", "_")
        values = [value for _, value in line]
        by_pair.setdefault(pair, []).extend(values)
        if pair.startswith("text_"):
            by_pair.setdefault("text_drawn", []).extend(values)
    if by_pair:
        found["gradient_cosine"] = {pair: float(np.mean(values)) for pair, values in by_pair.items()}
    rows = _rows(metrics)
    last = rows[-max(1, len(rows) // 10) :]
    for name in ("target_variance", "target_cosine"):
        if values := [row[name] for row in last if name in row]:
            found[name] = float(np.mean(values))
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
