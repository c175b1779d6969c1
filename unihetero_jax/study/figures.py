"""Figures of a study's report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.figure import Figure

from unihetero_jax.study.definition import Metric
from unihetero_jax.study.power_law import Fit
from unihetero_jax.study.statistics import Estimate, Finding

_COLORS = {"holds": "#047857", "does not": "#b91c1c", "undecided": "#64748b"}
# Number of points of a learning curve: losses are averaged in between, because single steps are noisy.
_POINTS = 60


def claims(findings: Sequence[Finding]) -> Figure:
    """Draw the effect of each claim with its interval, and the seeds as dots."""
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
    """Draw the mean of each metric in each arm, with its interval, one panel per metric."""
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
        axes.set_title(metric_label(metric), fontsize=10)
        axes.set_yticks(range(len(arms)), list(reversed(arms)))
        _plain(axes)
    return figure


def metric_label(metric: Metric) -> str:
    """Return a metric's name with the direction in which it improves."""
    return f"{metric.name} {'↑' if metric.higher_is_better else '↓'}"


def curves(losses: Mapping[str, Mapping[str, Sequence[Sequence[tuple[float, float]]]]]) -> Figure:
    """Draw losses over steps: one panel per loss, with one line per arm, the mean over seeds.

    Args:
      losses: (step, value) pairs of each seed, by loss and arm; the text loss has a logarithmic axis.
    """
    figure, panels = _panels(len(losses), columns=2, width=4.8, height=3.6, sharey=False)
    arms_of_all = dict.fromkeys(itertools.chain(*losses.values()))
    colors = {arm: colormaps["tab20"](number % 20) for number, arm in enumerate(arms_of_all)}
    lines = {}
    for axes, (name, arms) in zip(panels, losses.items(), strict=True):
        for arm, seeds in arms.items():
            parts = [_averaged(line) for line in seeds]
            points = min(map(len, parts))
            steps, values = np.mean([part[:points] for part in parts], axis=0).T
            (lines[arm],) = axes.plot(steps, values, color=colors[arm], linewidth=1.2)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
        if name == "text":
            _logarithmic(axes, (1, 2, 5))
        _plain(axes)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def scaling(laws: Sequence[Fit], size: str) -> Figure:
    """Draw mean errors over sizes and the law of each series, on logarithmic axes."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for number, fit in enumerate(laws):
        color = colormaps["tab10"](number)
        sizes, errors = zip(*fit.points, strict=True)
        axes.plot(sizes, errors, "o", color=color)
        line = np.geomspace(min(sizes), max(sizes), 50)
        axes.plot(line, [fit.error(at) for at in line], color=color, label=f"{fit.series}: b = {fit.slope[0]:.2f}")
    axes.set_xscale("log")
    axes.set_xticks(sorted({size for fit in laws for size, _ in fit.points}))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    _logarithmic(axes, range(1, 10))
    axes.set_xlabel(size)
    axes.set_ylabel("error")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def gradient_cosines(arms: Mapping[str, Sequence[Mapping[str, Sequence[tuple[float, float]]]]]) -> Figure:
    """Draw the cosine of gradients over steps: one panel per arm, with one line per pair of objectives and layer.

    Args:
      arms: (step, cosine) pairs of each seed, by arm and line; lines are means over the seeds that have them.
    """
    figure = _line_panels(arms, "step")
    for axes in figure.axes:
        axes.axhline(0.0, color="#1e293b", linewidth=1)
    return figure


def position_cosines(arms: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> Figure:
    """Draw cosines over the position of the generated embedding: one panel per arm, with one line per kind.

    Args:
      arms: cosines of each seed in the order of generation, [N], by arm and kind; lines are means over seeds.
    """
    points = {
        arm: [{name: list(enumerate(values, start=1)) for name, values in seed.items()} for seed in seeds]
        for arm, seeds in arms.items()
    }
    return _line_panels(points, "position")


def _line_panels(arms: Mapping[str, Sequence[Mapping[str, Sequence[tuple[float, float]]]]], label: str) -> Figure:
    figure, panels = _panels(len(arms), columns=3, width=4.2, height=2.8)
    names = dict.fromkeys(name for seeds in arms.values() for seed in seeds for name in seed)
    lines = {}
    for axes, (arm, seeds) in zip(panels, arms.items(), strict=True):
        for number, name in enumerate(names):
            found = [seed[name] for seed in seeds if name in seed]
            if not found:
                continue
            points = min(map(len, found))
            places, means = np.mean([line[:points] for line in found], axis=0).T
            (lines[name],) = axes.plot(places, means, color=colormaps["tab10"](number % 10), linewidth=1)
        axes.set_title(arm, fontsize=9)
        axes.set_xlabel(label)
        _plain(axes)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=min(len(lines), 4), frameon=False)
    return figure


def _panels(count: int, columns: int, width: float, height: float, sharey: bool = True) -> tuple[Figure, np.ndarray]:
    """Create a figure of panels in rows; width and height are those of a panel, in inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(9.0, width * columns), height * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, sharey=sharey)).ravel()
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _logarithmic(axes: Any, digits: Sequence[int]) -> None:
    """Make the vertical axis logarithmic, with labels at these multiples of powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=digits))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def _averaged(line: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return (step, value) pairs averaged over parts of a run, [points, 2]."""
    parts = np.array_split(np.asarray(line, np.float64), min(_POINTS, len(line)))
    return np.asarray([part.mean(axis=0) for part in parts])


def _plain(axes: Any) -> None:
    axes.grid(axis="x", color="#e2e8f0")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
