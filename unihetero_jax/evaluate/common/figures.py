"""Figures of an evaluation: learning curves, and grids of images beside texts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = "samples.png"
CAPTIONS = "captions.png"

_COLORS = {"loss": "#334155", "text": "#2563eb", "semantic": "#d97706", "pixel": "#059669"}
_INK, _FAINT, _RIGHT, _WRONG = "#1e293b", "#64748b", "#15803d", "#b45309"
# Inches between rows of a grid, and at its edges.
_GAP = 0.2


def curves(rows: Sequence[Mapping[str, Any]], losses: Iterable[str]) -> Figure:
    """Learning curves, raw and smoothed: each loss, the gradient norm and the learning rate.

    Args:
      rows: of ``metrics.jsonl``.
      losses: names in ``config.losses``.
    """
    steps = np.asarray([row["step"] for row in rows])

    def column(name: str) -> np.ndarray:
        return np.asarray([row[name] if _is_number(row.get(name)) else np.nan for row in rows], float)

    # Those without a color of their own get matplotlib's, one after another.
    known = dict.fromkeys(("loss", *losses))
    colors = {name: _COLORS.get(name, f"C{place}") for place, name in enumerate(known)}
    names = [name for name in known if np.isfinite(column(name)).any()]
    figure = _figure((10, 5.2 if len(names) > 2 else 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    left = figure.add_subplot(grid[:, :2])
    for name in names:
        left.plot(steps, column(name), color=colors[name], alpha=0.22, linewidth=0.8)
        left.plot(steps, smooth(column(name)), color=colors[name], linewidth=1.8, label=name)
    left.set_yscale("log")
    left.set_title("loss", loc="left", color=_INK)
    if names:
        left.legend(frameon=False)
    norm, rate = figure.add_subplot(grid[0, 2]), figure.add_subplot(grid[1, 2])
    norms = column("grad_norm")
    norm.plot(steps, norms, color="#7c3aed", alpha=0.25, linewidth=0.8)
    norm.plot(steps, smooth(norms), color="#7c3aed", linewidth=1.6)
    if np.nanmax(norms, initial=0) > 0:
        norm.set_yscale("log")
    rate.plot(steps, column("learning_rate"), color="#0f766e", linewidth=1.6)
    for axes, title in ((norm, "grad norm"), (rate, "learning rate")):
        axes.set_title(title, loc="left", color=_INK, fontsize=10)
    for axes in figure.axes:
        axes.set_xlabel("step", color=_FAINT)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", colors=_FAINT, labelsize=8)
    return figure


def smooth(values: np.ndarray, share: float = 0.015) -> np.ndarray:
    """A Gaussian average of [n] values, of standard deviation ``share`` · n; values that are not finite are skipped.

    Centered, unlike a moving average of the past, which would show a falling loss above its own values.
    """
    spread = max(1.0, share * len(values))
    radius = round(3 * spread)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / spread) ** 2)
    known = np.isfinite(values)
    totals = np.convolve(np.where(known, values, 0.0), kernel)[radius : radius + len(values)]
    weights = np.convolve(known.astype(float), kernel)[radius : radius + len(values)]
    return np.where(weights > 0, totals / np.where(weights > 0, weights, 1.0), np.nan)


def samples(requests: Sequence[str], truth: np.ndarray, generated: np.ndarray, step: int) -> Figure:
    """A grid: the request, the true image, and the model's.

    Args:
      requests: n texts.
      truth: [n, H, W, 3] uint8.
      generated: [n, H, W, 3] uint8.
      step: of the checkpoint.
    """
    tile, text = 1.7, 2.5
    grid = _Grid(len(requests), tile, text + 2 * tile + 0.45, 0.75, f"Generated from held-out requests, step {step:,}")
    for number, request in enumerate(requests):
        grid.text(number, 0, tile / 2, shortened(request, 32, 7), va="center", fontsize=9, linespacing=1.35)
        for offset, (heading, image) in enumerate((("true", truth[number]), ("generated", generated[number]))):
            axes = grid.image(number, text + offset * (tile + 0.12), image)
            if number % grid.rows == 0:
                axes.set_title(heading, fontsize=10, color=_FAINT, pad=4)
    return grid.figure


def captions(
    images: np.ndarray, truths: Sequence[str], given: Sequence[str], right: Sequence[bool], step: int
) -> Figure:
    """A grid: held-out images, with the true text about each and the model's.

    Args:
      images: [n, H, W, 3] uint8.
      truths: n texts.
      given: n texts.
      right: whether each text of the model is the true one; those are green.
      step: of the checkpoint.
    """
    tile = 1.35
    grid = _Grid(len(images), tile, tile + 3.3, 0.5, f"Answers about held-out images, step {step:,}")
    for number, image in enumerate(images):
        grid.image(number, 0, image)
        answer = given[number] or "(nothing)", _RIGHT if right[number] else _WRONG
        for heading, (text, color), top in (("true", (truths[number], _INK), 0.97), ("model", answer, 0.47)):
            place = number, tile + 0.15, top * tile
            grid.text(*place, heading, fontsize=7.5, color=_FAINT)
            grid.text(number, place[1], place[2] - 0.16, shortened(text, 44, 3), fontsize=9, color=color)
    return grid.figure


class _Grid:
    """Cells of one size under a title, in one column, or in two where there are more than three.

    Args:
      count: number of cells.
      height: of a cell, in inches.
      width: of a cell, in inches.
      top: height of the title, in inches.
      title: what the figure shows.
    """

    def __init__(self, count: int, height: float, width: float, top: float, title: str):
        columns = 2 if count > 3 else 1
        self.rows = -(-count // columns)
        self._cell = width, height + _GAP
        self._height = height
        self._size = columns * width + _GAP, top + self.rows * (height + _GAP)
        self.figure = _figure(self._size, facecolor="white")
        style: dict[str, Any] = {"fontsize": 12, "color": _INK, "weight": "bold", "va": "center"}
        self.figure.text(_GAP / self._size[0], 1 - 0.24 / self._size[1], title, **style)

    def _corner(self, number: int) -> tuple[float, float]:
        """The lower left corner of a cell, in inches."""
        column, row = divmod(number, self.rows)
        rows_below = self.rows - row - 1
        return column * self._cell[0] + _GAP, rows_below * self._cell[1]

    def image(self, number: int, x: float, image: np.ndarray) -> Any:
        """The axes of an image, [H, W, 3] uint8, ``x`` inches into a cell."""
        left, bottom = self._corner(number)
        width, height = self._size
        tile = self._height
        axes = self.figure.add_axes(((left + x) / width, bottom / height, tile / width, tile / height))
        axes.imshow(image, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("#cbd5e1")
        return axes

    def text(self, number: int, x: float, y: float, text: str, **style: Any) -> None:
        """A text at (x, y) inches in a cell."""
        left, bottom = self._corner(number)
        place: dict[str, Any] = {"va": "top", "linespacing": 1.25, "color": _INK, "parse_math": False, **style}
        self.figure.text((left + x) / self._size[0], (bottom + y) / self._size[1], text, **place)


def shortened(text: str, width: int = 60, lines: int = 1) -> str:
    """A text in at most so many lines of so many characters; an ellipsis stands for the rest."""
    return textwrap.fill(text, width, max_lines=lines, placeholder=" …", break_on_hyphens=False)


def _figure(size: tuple[float, float], **options: Any) -> Figure:
    # Here, because configs name evaluators and are read without it: importing it takes longer than the rest.
    from matplotlib.figure import Figure

    return Figure(figsize=size, **options)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
