"""Figures of a study's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from unihetero_jax.study.declaration import Metric
from unihetero_jax.study.scaling import Fit
from unihetero_jax.study.statistics import Estimate, Finding

_COLORS = {"holds": "#047857", "does not": "#b91c1c", "undecided": "#64748b"}
# Parts of a run over which its losses are averaged: single steps are noise.
_POINTS = 60


def claims(findings: Sequence[Finding]) -> Figure:
    """The effect of each claim with its interval, and the seeds as dots."""
    figure = Figure(figsize=(9, 0.8 + 0.4 * len(findings)))
    axes = figure.subplots()
    for place, found in enumerate(reversed(findings)):
        color = _COLORS[found.verdict]
        effect = found.effect
        if math.isfinite(effect.low):
            axes.plot([effect.low, effect.high], [place, place], color=color, linewidth=2)
        if effect.count:
            axes.plot(list(found.by_seed.values()), [place] * effect.count, ".", color=color, alpha=0.4)
            axes.plot(effect.mean, place, "o", color=color)
    axes.axvline(0.0, color="#1e293b", linewidth=1)
    axes.set_yticks(range(len(findings)), [found.claim.id for found in reversed(findings)])
    axes.set_ylim(-0.6, len(findings) - 0.4)
    axes.set_xlabel("effect: above 0 as claimed")
    _plain(axes)
    return figure


def scores(metrics: Sequence[Metric], means: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """The mean of each metric in each arm, with its interval; a panel a metric."""
    arms = list(means)
    figure, panels = _panels(len(metrics), columns=5, width=2.3, height=1.0 + 0.28 * len(arms))
    for axes, metric in zip(panels, metrics, strict=True):
        for place, arm in enumerate(reversed(arms)):
            found = means[arm].get(metric.key)
            if found is None:
                continue
            if math.isfinite(found.low):
                axes.plot([found.low, found.high], [place, place], color="#94a3b8", linewidth=2)
            axes.plot(found.mean, place, "o", color="#2563eb")
        axes.set_title(f"{metric.name} {'↑' if metric.higher_is_better else '↓'}", fontsize=10)
        axes.set_yticks(range(len(arms)), list(reversed(arms)))
        _plain(axes)
    return figure


def curves(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Figure:
    """The text loss over steps, a line an arm: the mean over seeds."""
    figure = Figure(figsize=(9, 4.5))
    axes = figure.subplots()
    colors = colormaps["tab20"]
    for number, (arm, seeds) in enumerate(runs.items()):
        lines = [line for rows in seeds if (line := _line(rows, "text"))]
        if not lines:
            continue
        points = min(len(line) for line in lines)
        steps = np.mean([[step for step, _ in line[:points]] for line in lines], axis=0)
        values = np.mean([[value for _, value in line[:points]] for line in lines], axis=0)
        axes.plot(steps, values, label=arm, color=colors(number % 20))
    axes.set_xlabel("step")
    axes.set_ylabel("text loss")
    axes.set_yscale("log")
    if axes.lines:
        axes.legend(fontsize=8, ncols=2, frameon=False)
    _plain(axes)
    return figure


def scaling(laws: Sequence[Fit], size: str) -> Figure:
    """Mean errors over sizes, and the law of each series, in logarithms."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for number, fit in enumerate(laws):
        color = colormaps["tab10"](number)
        sizes, errors = zip(*fit.points, strict=True)
        axes.plot(sizes, errors, "o", color=color)
        line = np.geomspace(min(sizes), max(sizes), 50)
        axes.plot(line, [fit.error(at) for at in line], color=color, label=f"{fit.series}: b = {fit.slope[0]:.2f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(size)
    axes.set_ylabel("error")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def angles(arms: Mapping[str, Sequence[Mapping[str, Sequence[tuple[int, float]]]]]) -> Figure:
    """A panel an arm: for each pair of objectives and layer a line of the cosine over steps.

    Lines are means over the seeds that have it: a run from before it was measured has none.
    """
    figure, panels = _panels(len(arms), columns=3, width=4.2, height=2.8)
    for axes, (arm, seeds) in zip(panels, arms.items(), strict=True):
        for number, name in enumerate(dict.fromkeys(name for seed in seeds for name in seed)):
            lines = [seed[name] for seed in seeds if name in seed]
            points = min(map(len, lines))
            steps = [step for step, _ in lines[0][:points]]
            means = np.mean([[value for _, value in line[:points]] for line in lines], axis=0)
            axes.plot(steps, means, color=colormaps["tab10"](number), label=name, linewidth=1)
        axes.axhline(0.0, color="#1e293b", linewidth=1)
        axes.set_title(arm, fontsize=9)
        axes.set_xlabel("step")
        axes.legend(fontsize=7, frameon=False)
        _plain(axes)
    return figure


def positions(arms: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> Figure:
    """A panel an arm: cosines over the position of what is drawn, a line for each kind, means over seeds.

    Args:
      arms: of each seed, by kind, [N] in the order of drawing.
    """
    figure, panels = _panels(len(arms), columns=3, width=4.2, height=2.8)
    lines = {}
    for axes, (arm, seeds) in zip(panels, arms.items(), strict=True):
        for number, name in enumerate(dict.fromkeys(name for seed in seeds for name in seed)):
            means = np.mean([seed[name] for seed in seeds if name in seed], axis=0)
            color = colormaps["tab10"](number)
            (lines[name],) = axes.plot(range(1, len(means) + 1), means, color=color, linewidth=1)
        axes.set_title(arm, fontsize=9)
        axes.set_xlabel("position")
        _plain(axes)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def _panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of so many panels in rows; inches of each."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(9.0, width * columns), height * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _line(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value), averaged over parts of the run."""
    kept = [(row["step"], row[name]) for row in rows if name in row]
    if not kept:
        return []
    parts = np.array_split(np.asarray(kept, np.float64), min(_POINTS, len(kept)))
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def _plain(axes: Any) -> None:
    axes.grid(axis="x", color="#e2e8f0")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
