"""What an evaluation found: a table for the screen, ``eval.json``, learning curves and grids of pictures."""

from __future__ import annotations

import io
import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unihetero_jax.evaluate import answers
from unihetero_jax.evaluate.vqa import Score, as_json
from unihetero_jax.files import write_atomic

EVAL = "eval.json"
EVALS = "evals.jsonl"
CURVES = "curves.png"
SAMPLES = "samples.png"
CAPTIONS = "captions.png"
DRAWN = "drawn.npz"

_COLORS = {"loss": "#334155", "text": "#2563eb", "semantic": "#d97706", "pixel": "#059669"}
_READ_BACK = {"read": "read off pictures", "probe": "read off embeddings"}
_ATTRIBUTES = {
    "weather": "weather",
    "weather_position": "its place",
    "battery": "battery",
    "battery_position": "its place",
    "time": "time",
    "hour": "hour",
    "color_name": "colour",
    "color_error": "/ 255",
}
_CAPTIONS = (("score", 9), ("stated", 9), ("expected", 10))
_INK, _FAINT = "#1e293b", "#64748b"


@dataclass(frozen=True)
class Findings:
    """Everything that an evaluation of one checkpoint measured; a part that was not asked for is empty.

    ``more``: ``probes``, ``captions`` and ``perplexity``, where they were.
    """

    step: int
    vqa: Mapping[str, Score]
    losses: Mapping[str, Any]
    generation: Mapping[str, Any]
    answers: Mapping[str, answers.AnswerScore] = field(default_factory=dict)
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers; None for what is no number, which JSON cannot say."""
        plain = {
            "step": self.step,
            "vqa": as_json(self.vqa),
            "answers": answers.as_json(self.answers),
            "losses": dict(self.losses),
            "generation": dict(self.generation),
            **{name: dict(part) for name, part in self.more.items()},
        }
        return {name: _finite(value) for name, value in plain.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_findings(findings: Findings, path: Path) -> None:
    """Writes a JSON file that is whole or absent."""
    write_atomic(path, json.dumps(findings.as_json(), indent=1) + "\n")


def append_findings(findings: Findings, path: Path) -> None:
    """Adds one line of JSON to a file, on disk when this returns; a line that was cut off there stays by itself."""
    line = (json.dumps(findings.as_json()) + "\n").encode()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def table(findings: Findings) -> str:
    """The numbers, in columns, for the screen."""
    lines = [f"step {findings.step:,}"]
    if findings.vqa:
        lines += ["", f"{'questions':<22}{'score':>9}{'chance':>9}{'constant':>10}{'count':>8}"]
        for name, found in findings.vqa.items():
            lines.append(f"  {name:<20}{found.score:>9.3f}{found.chance:>9.3f}{found.constant:>10.3f}{found.count:>8,}")
    if findings.answers:
        lines += ["", *_answers_table(findings.answers)]
    if findings.losses:
        sides = findings.losses.values()
        lines += ["", f"{'held-out rows':<22}{''.join(f'{side:>15}' for side in findings.losses)}"]
        for name in dict.fromkeys(name for found in sides for name, value in found.items() if np.ndim(value) == 0):
            cells = (f"{found[name]:.4f}" if name in found else "" for found in sides)
            lines.append(f"  {name:<20}{''.join(f'{cell:>15}' for cell in cells)}".rstrip())
    if findings.generation:
        lines += ["", *_generation_table(findings.generation)]
        for name, title in _READ_BACK.items():
            if name in findings.generation:
                lines += ["", *_attributes_table(title, findings.generation[name])]
        if "frechet" in findings.generation:
            lines += ["", f"{'Fréchet distance':<22}{'of these':>9}{'of endlessly many':>20}"]
            for name, found in findings.generation["frechet"].items():
                lines.append(f"  {name:<20}{found['distance']:>9.2f}{found['infinite']:>20.2f}")
    if "probes" in findings.more:
        lines += ["", *_attributes_table("probes of layers", findings.more["probes"])]
    if "captions" in findings.more:
        lines += ["", f"{'captions':<22}{'score':>9}{'stated':>9}{'expected':>10}"]
        for name, found in findings.more["captions"].items():
            cells = (f"{found[key]:>{width}.3f}" if key in found else f"{'–':>{width}}" for key, width in _CAPTIONS)
            lines.append(f"  {name.replace('_', ' '):<20}{''.join(cells)}")
    if "perplexity" in findings.more:
        lines += ["", "text"]
        for name, value in findings.more["perplexity"].items():
            lines.append(f"  {name.replace('_', ' '):<20}{value:>9,.6g}")
    if len(lines) == 1:
        lines.append("  nothing was evaluated: no test records of the config's tasks, or all of config.evaluate is off")
    return "\n".join(lines)


def _answers_table(found: Mapping[str, answers.AnswerScore]) -> list[str]:
    lines = [f"{'answers':<25}{'model':>9}{'constant':>10}{'gain, 95%':>18}{'count':>8}"]
    for name, score in found.items():
        low, high = score.gain
        gain = f"{low:+.3f} … {high:+.3f}"
        lines.append(f"  {f'{name}, F1':<23}{score.f1:>9.3f}{score.constant_f1:>10.3f}{gain:>18}{score.count:>8,}")
        lines.append(f"  {f'{name}, exact':<23}{score.exact:>9.3f}{score.constant_exact:>10.3f}")
        lines.append(f"  (constant: always {_short(score.constant)!r})")
    return lines


def _generation_table(found: Mapping[str, Any]) -> list[str]:
    # Label, and the keys of drawn, another picture and taught; "" for what is not measured.
    rows = (
        ("cosine", "free_cosine", "free_cosine_other", "taught_cosine", "9.3f"),
        ("pixel error / 255", "free_pixel_error", "free_pixel_error_other", "taught_pixel_error", "9.1f"),
        ("disc colour error / 255", "color_error", "color_error_other", "", "9.1f"),
        ("disc colour name", "color_name", "color_name_other", "", "9.3f"),
        ("two right corners", "corners", "corners_other", "", "9.3f"),
    )
    lines = [f"{'drawn from requests':<25}{'drawn':>9}{'another':>9}{'taught':>9}{'count':>8}"]
    for label, free, other, taught, style in rows:
        if free in found:
            cells = [f"{found[name]:{style}}" if name in found else f"{'–':>9}" for name in (free, other, taught)]
            lines.append(f"  {label:<23}{''.join(cells)}{found['count']:>8,}")
    if found["forced"]:
        lines.append(f"  {found['forced']:.1%} of the requests were not answered with a picture until it was forced")
    lines.append("  (another: against another held-out picture; taught: shown the true patches before each one)")
    return lines


def _attributes_table(title: str, found: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = [f"{title:<22}" + "".join(f"{name:>10}" for name in _ATTRIBUTES.values())]
    for name, scores in found.items():
        cells = (f"{scores[key]:>10.3f}" if key in scores else f"{'–':>10}" for key in _ATTRIBUTES)
        lines.append(f"  {name.replace('_', ' '):<20}{''.join(cells)}")
    return lines


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Learning curves, raw and smoothed: each objective, the gradient norm and the learning rate.

    Args:
      rows: of ``metrics.jsonl``.
      path: of the PNG file.
    """
    steps = np.asarray([row["step"] for row in rows])
    names = [name for name in _COLORS if any(_number(row.get(name)) for row in rows)]
    figure = Figure(figsize=(10, 5.2 if len(names) > 2 else 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    losses = figure.add_subplot(grid[:, :2])
    for name in names:
        values = np.asarray([row[name] if _number(row.get(name)) else np.nan for row in rows], float)
        losses.plot(steps, values, color=_COLORS[name], alpha=0.22, linewidth=0.8)
        losses.plot(steps, smooth(values), color=_COLORS[name], linewidth=1.8, label=name)
    losses.set_yscale("log")
    losses.set_title("loss", loc="left", color=_INK)
    losses.set_xlabel("step", color=_FAINT)
    if names:
        losses.legend(frameon=False)
    for place, name, color in ((grid[0, 2], "grad_norm", "#7c3aed"), (grid[1, 2], "learning_rate", "#0f766e")):
        axes = figure.add_subplot(place)
        values = np.asarray([row[name] if _number(row.get(name)) else np.nan for row in rows], float)
        raw = name == "grad_norm"
        axes.plot(steps, values, color=color, alpha=0.25 if raw else 1.0, linewidth=0.8 if raw else 1.6)
        if raw:
            axes.plot(steps, smooth(values), color=color, linewidth=1.6)
            if np.nanmax(values, initial=0) > 0:
                axes.set_yscale("log")
        axes.set_title(name.replace("_", " "), loc="left", color=_INK, fontsize=10)
        axes.set_xlabel("step", color=_FAINT)
    for axes in figure.axes:
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", colors=_FAINT, labelsize=8)
    _save(figure, path)


def smooth(values: np.ndarray, share: float = 0.015) -> np.ndarray:
    """A Gaussian average, of standard deviation ``share`` of the values, [n]; what is no number is passed over.

    Centred, unlike a moving average of the past, which would show a falling loss above its own values.
    """
    spread = max(1.0, share * len(values))
    radius = round(3 * spread)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / spread) ** 2)
    known = np.isfinite(values)
    totals = np.convolve(np.where(known, values, 0.0), kernel)[radius : radius + len(values)]
    weights = np.convolve(known.astype(float), kernel)[radius : radius + len(values)]
    return np.where(weights > 0, totals / np.where(weights > 0, weights, 1.0), np.nan)


def draw_samples(requests: Sequence[str], truth: np.ndarray, drawn: np.ndarray, step: int, path: Path) -> None:
    """A grid: what was asked for, the true picture, and the model's.

    Args:
      requests: n texts.
      truth: [n, H, W, 3] uint8.
      drawn: [n, H, W, 3] uint8.
      step: of the checkpoint.
      path: of the PNG file.
    """
    columns = 2 if len(requests) > 3 else 1
    rows = -(-len(requests) // columns)
    tile, text, top = 1.7, 2.5, 0.75
    width, height = columns * (text + 2 * tile + 0.45), top + rows * (tile + 0.2)
    figure = Figure(figsize=(width, height), facecolor="white")
    title = f"Drawn from held-out requests, step {step:,}"
    figure.text(0.2 / width, 1 - 0.24 / height, title, fontsize=12, color=_INK, weight="bold", va="center")
    for number, request in enumerate(requests):
        column, row = number // rows, number % rows
        left = column * (text + 2 * tile + 0.45) + 0.2
        bottom = height - top - (row + 1) * tile - row * 0.2
        figure.text(
            left / width,
            (bottom + tile / 2) / height,
            _short(request, 32, 7),
            fontsize=9,
            color=_INK,
            va="center",
            linespacing=1.35,
            parse_math=False,
        )
        for offset, (heading, image) in enumerate((("true", truth[number]), ("drawn", drawn[number]))):
            x = left + text + offset * (tile + 0.12)
            axes = _tile(figure, image, (x / width, bottom / height, tile / width, tile / height))
            if row == 0:
                axes.set_title(heading, fontsize=10, color=_FAINT, pad=4)
    _save(figure, path)


def draw_captions(images: np.ndarray, truths: Sequence[str], given: Sequence[str], step: int, path: Path) -> None:
    """A grid: held-out pictures, with the true text about each and the model's.

    Args:
      images: [n, H, W, 3] uint8.
      truths: n texts.
      given: n texts; those whose words are the true ones are green.
      step: of the checkpoint.
      path: of the PNG file.
    """
    columns = 2 if len(images) > 3 else 1
    rows = -(-len(images) // columns)
    tile, text, top = 1.35, 3.3, 0.5
    width, height = columns * (tile + text) + 0.2, top + rows * (tile + 0.2)
    figure = Figure(figsize=(width, height), facecolor="white")
    title = f"What is said of held-out pictures, step {step:,}"
    figure.text(0.2 / width, 1 - 0.24 / height, title, fontsize=12, color=_INK, weight="bold", va="center")
    for number, (image, truth, answer) in enumerate(zip(images, truths, given, strict=True)):
        column, row = number // rows, number % rows
        left = column * (tile + text) + 0.2
        bottom = height - top - (row + 1) * tile - row * 0.2
        _tile(figure, image, (left / width, bottom / height, tile / width, tile / height))
        right = answers.exact_match(answer, truth)
        for heading, words, color, y in (
            ("true", truth, _INK, 0.97),
            ("model", answer or "(nothing)", "#15803d" if right else "#b45309", 0.47),
        ):
            place: dict[str, Any] = {
                "x": (left + tile + 0.15) / width,
                "va": "top",
                "linespacing": 1.25,
                "parse_math": False,
            }
            figure.text(y=(bottom + y * tile) / height, s=heading, fontsize=7.5, color=_FAINT, **place)
            figure.text(y=(bottom + y * tile - 0.16) / height, s=_short(words, 44, 3), fontsize=9, color=color, **place)
    _save(figure, path)


def keep_drawn(requests: Sequence[str], truth: np.ndarray, drawn: np.ndarray, path: Path) -> None:
    """Writes pictures for tools of others: ``drawn`` and ``real`` [n, H, W, 3] uint8, and their ``requests``.

    Args:
      requests: n texts.
      truth: the true pictures.
      drawn: the model's.
      path: of the npz file, which is whole or absent.
    """
    content = io.BytesIO()
    np.savez_compressed(content, drawn=drawn, real=truth, requests=np.asarray(requests))
    write_atomic(path, content.getvalue())


def _tile(figure: Figure, image: np.ndarray, place: tuple[float, float, float, float]) -> Any:
    axes = figure.add_axes(place)
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#cbd5e1")
    return axes


def _short(text: str, width: int = 60, lines: int = 1) -> str:
    """A text in at most so many lines of so many characters; what is left out shows as an ellipsis."""
    return textwrap.fill(text, width, max_lines=lines, placeholder=" …", break_on_hyphens=False)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _save(figure: Figure, path: Path) -> None:
    """Writes a PNG that is whole or absent."""
    # Training's own evaluation and one that follows it may both be writing.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(part, format="png", dpi=140)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
