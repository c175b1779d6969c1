"""Histograms of a stored dataset: lengths of texts, sides and aspects of images, one line per split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from unihetero_jax.data.inspect.measure import SplitFindings
from unihetero_jax.errors import UsageError

_COLORS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#db2777", "#334155", "#0891b2", "#65a30d")
_INK, _FAINT = "#1e293b", "#64748b"
_BINS = 40


def draw(found: Mapping[str, SplitFindings], name: str, path: Path) -> None:
    """Draw the histograms.

    Args:
        found: Findings of every split.
        name: Name of the dataset.
        path: PNG file to write.

    Raises:
        UsageError: The file cannot be written, or nothing was measured.
    """
    panels: dict[str, dict[str, Sequence[float]]] = {
        "answers, characters": {split: made.answers for split, made in found.items()},
        "text of a record, tokens": {split: made.tokens for split, made in found.items()},
        "shorter side of an image, pixels": {split: [min(s) for s in made.sides] for split, made in found.items()},
        "width / height of an image": {split: [w / h for w, h in made.sides if h] for split, made in found.items()},
    }
    if not any(values for panel in panels.values() for values in panel.values()):
        raise UsageError(f"{name}: nothing could be measured in its records, so there are no histograms")
    tasks = list(dict.fromkeys(_task(split) for split in found))
    # A test split has the color of its training split: the two should coincide.
    styles: dict[str, dict[str, Any]] = {
        split: {
            "color": _COLORS[tasks.index(_task(split)) % len(_COLORS)],
            "linestyle": "--" if split.startswith("test_") else "-",
        }
        for split in found
    }
    figure = Figure(figsize=(11, 7), layout="constrained")
    sampled = sum(len(made.sampled) for made in found.values())
    figure.suptitle(f"{name}: {sampled:,} sampled records", x=0.01, ha="left", color=_INK, weight="bold")
    for place, (title, values) in enumerate(panels.items()):
        axes = figure.add_subplot(2, 2, place + 1)
        axes.set_title(title, loc="left", color=_INK, fontsize=11)
        _draw_panel(axes, values, styles)
    lines = [Line2D([], [], label=split, **style) for split, style in styles.items()]
    figure.legend(handles=lines, loc="outside lower left", ncols=min(6, len(lines)), frameon=False, fontsize=9)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _draw_panel(axes: Axes, values: Mapping[str, Sequence[float]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    shown = [value for part in values.values() for value in part]
    if not shown:
        axes.text(0.5, 0.5, "none, or not measured", transform=axes.transAxes, ha="center", color=_FAINT)
        axes.set_axis_off()
        return
    edges, logarithmic = _edges(shown)
    for split, part in values.items():
        if part:
            weights = np.full(len(part), 100 / len(part))
            axes.hist(part, edges.tolist(), weights=weights, histtype="step", linewidth=1.6, **styles[split])
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("% of the split", color=_FAINT, fontsize=8)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=_FAINT, labelsize=8)


def _task(split: str) -> str:
    return split.split("_", 1)[-1]


def _edges(values: Sequence[float]) -> tuple[np.ndarray, bool]:
    """Return the edges of the bins, and whether they are logarithmic, as where values span a factor of 20."""
    least, most = min(values), max(values)
    if least > 0 and most / least > 20:
        return np.geomspace(least, most * 1.001, _BINS + 1), True
    if least == most:
        # A single value becomes a bar in the middle, not one as wide as the panel.
        return np.linspace(least - abs(least) / 2 - 0.5, least + abs(least) / 2 + 0.5, 22), False
    if isinstance(least, int) and isinstance(most, int):
        # Bins of whole numbers: others would contain one or two of them alternately.
        step = -(-(most - least + 1) // _BINS)
        return np.arange(least, most + step + 1, step) - 0.5, False
    return np.linspace(least, most, _BINS + 1), False
