"""What generated captions of watches state, against the watches' attributes.

A caption may leave things out: how often each attribute is stated stands beside its score where it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unihetero_jax.config.components import EVALUATORS, EvaluatorConfig
from unihetero_jax.data.smart_watch import POSITIONS, WEATHERS, Attributes, color_name
from unihetero_jax.data.smart_watch.text import COLOR_NAMES
from unihetero_jax.evaluate.base import Context, Result
from unihetero_jax.evaluate.common import smart_watch
from unihetero_jax.evaluate.common.attributes import KINDS, battery_score, read_time, time_score

Statements = dict[str, str]
"""What a text states, by the kind of attribute, as a bare answer."""

# Columns of the table, and their widths.
_COLUMNS = (("score", 9), ("stated", 9), ("expected", 10))

# What a sentence or clause with a corner is about.
_SUBJECTS = {"battery_pos": re.compile(r"\b(battery|charge)\b"), "weather_pos": re.compile(r"\b(weather|icon)\b")}
_CLAUSES = re.compile(r"[.,;!?]|\band\b|\bwith\b")
_CORNERS = re.compile(r"\b(" + "|".join(POSITIONS) + r")\b")
_PERCENT = re.compile(r"(?<![\d.:-])(\d{1,3})\s?%")
_WEATHER = re.compile(r"\b(" + "|".join(WEATHERS) + r")\b")
_COLOR = re.compile(r"\b(" + "|".join(COLOR_NAMES) + r")\b")


@dataclass(frozen=True)
class CaptionsConfig(EvaluatorConfig):
    """Attributes stated by captions of ``config.evaluate.questions`` Smart Watch images."""


@EVALUATORS.register("captions", config=CaptionsConfig)
def evaluate(config: CaptionsConfig, context: Context) -> Result:
    """Generate captions of the test split of the run's Smart Watch dataset."""
    del config
    if context.smart_watch is None:
        return Result()
    data, coder = context.config.data, context.predictor.tokenizer
    asked = smart_watch.requests(context.smart_watch, data.image_size, context.options.questions, "caption")
    longest = max(len(coder.encode(caption)) for caption in asked.phrases)
    given = context.predictor.answer(asked.images, asked.requests, min(longest + 1, data.seq_len))
    found = score(given, asked.phrases, asked.truths)
    return Result(found, table(found))


def table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines for the screen."""
    lines = [f"{'captions':<22}" + "".join(f"{key:>{width}}" for key, width in _COLUMNS)]
    for name, numbers in found.items():
        cells = (f"{numbers[key]:>{width}.3f}" if key in numbers else f"{'–':>{width}}" for key, width in _COLUMNS)
        lines.append(f"  {name.replace('_', ' '):<20}{''.join(cells)}")
    return lines


def parse(text: str) -> Statements:
    """What a caption or a request states, for those of ``KINDS`` that it mentions.

    Of several times, weathers and so on the first counts; a corner belongs to the battery or the weather of its clause.
    """
    text = text.lower()
    found: Statements = {}
    if (time := read_time(text)) is not None:
        found["time"] = "{:02d}:{:02d}:{:02d}".format(*time)
    if (percent := _PERCENT.search(text)) and int(percent[1]) <= 100:
        found["battery"] = f"{int(percent[1])}%"
    if weather := _WEATHER.search(text):
        found["weather"] = weather[1]
    if color := _COLOR.search(text):
        found["color"] = color[1]
    for clause in _CLAUSES.split(text):
        if corner := _CORNERS.search(clause):
            about = [kind for kind, subject in _SUBJECTS.items() if subject.search(clause)]
            if len(about) == 1:
                found.setdefault(about[0], corner[1])
    return found


def score(given: Sequence[str], captions: Sequence[str], truths: Sequence[Attributes]) -> dict[str, dict[str, float]]:
    """Score what n captions state.

    Args:
      given: the model's captions.
      captions: the true captions.
      truths: attributes of the images.

    Returns:
      By kind of attribute: ``score`` of the captions that state it, as of the answers to questions (``evaluate.vqa``;
      left out if none does), ``stated``, the share that does, and ``expected``, the share of the true captions that
      does. Under ``total``: ``score``, the mean over all statements; ``found``, the mean over what the true captions
      state, 0 for what the given one does not; and ``count``.
    """
    made, wanted = [parse(text) for text in given], [parse(text) for text in captions]
    results: dict[str, dict[str, float]] = {}
    all_scores: list[float] = []
    all_found: list[float] = []
    for kind in KINDS:
        marks = [_mark(kind, text.get(kind), truth) for text, truth in zip(made, truths, strict=True)]
        stated = [mark for mark in marks if mark is not None]
        expected = [mark for mark, true in zip(marks, wanted, strict=True) if kind in true]
        if not stated and not expected:
            continue
        results[kind] = {"stated": len(stated) / len(given), "expected": len(expected) / len(given)}
        if stated:
            results[kind]["score"] = float(np.mean(stated))
        all_scores += stated
        all_found += [mark or 0.0 for mark in expected]
    results["total"] = {"count": len(given)}
    for name, all_marks in (("score", all_scores), ("found", all_found)):
        if all_marks:
            results["total"][name] = float(np.mean(all_marks))
    return results


def _mark(kind: str, stated: str | None, truth: Attributes) -> float | None:
    if stated is None:
        return None
    if kind == "time":
        return time_score((truth.hour, truth.minute, truth.second), read_time(stated))
    if kind == "battery":
        return battery_score(truth.battery, int(stated.removesuffix("%")))
    return float(stated == (color_name(truth.color) if kind == "color" else truth.answer(kind)))
