"""Scores of what an answer, a caption or an image says of a watch's attributes.

The scores are those of arXiv 2505.23043. time: 1 − the mean of the three circular errors, each over its largest value
(6 h, 30 min, 30 s), hours modulo 12. battery: 1 − |Δ| / 100. What cannot be read scores 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from unihetero_jax.data.smart_watch import QUESTION_KINDS, Attributes, color_name

KINDS = (*QUESTION_KINDS, "color")
"""Kinds of attributes that a request may state and an image show."""

NEAR_MINUTES, NEAR_CHARGE = 3, 10
"""Minutes and percent that a hand and a charge may be off, to be nearly right."""

PERIODS = (12, 60, 60)
"""Hours, minutes and seconds of one turn of each hand."""

# Scores by the kind of attribute that they are about.
_SCORES = {
    "weather": ("weather",),
    "time": ("time", "hour", "minute", "second", "minute_near"),
    "battery": ("battery", "battery_near"),
    "battery_pos": ("battery_position",),
    "weather_pos": ("weather_position",),
    "color": ("color_error", "color_name"),
}
_HEADINGS = {
    "weather": "weather",
    "weather_position": "its place",
    "battery": "battery",
    "battery_near": "within 10",
    "battery_position": "its place",
    "time": "time",
    "hour": "hour",
    "minute_near": "minute ±3",
    "color_name": "color",
    "color_error": "/ 255",
}


def read_time(answer: str) -> tuple[int, int, int] | None:
    """The first ``HH:MM:SS`` of an answer; None without one, or when it is no time of day."""
    found = re.search(r"(?<![\d:])(\d{1,2}):(\d{1,2}):(\d{1,2})(?![\d:])", answer, re.ASCII)
    if not found:
        return None
    hour, minute, second = (int(part) for part in found.groups())
    return (hour, minute, second) if hour < 24 and minute < 60 and second < 60 else None


def read_battery(answer: str) -> int | None:
    """The first whole number of an answer; None without one, or beyond 100."""
    found = re.search(r"(?<![\d.:-])\d{1,3}(?![\d:])", answer, re.ASCII)
    return int(found[0]) if found and int(found[0]) <= 100 else None


def time_score(truth: tuple[int, int, int], guess: tuple[int, int, int] | None) -> float:
    """1 − the mean of three circular errors; 0 for no guess."""
    if guess is None:
        return 0.0
    return 1 - float(
        np.mean([circular_error(t, g, period) for t, g, period in zip(truth, guess, PERIODS, strict=True)])
    )


def battery_score(truth: int, guess: int | None) -> float:
    """1 − |Δ| / 100; 0 for no guess."""
    return 0.0 if guess is None else 1 - abs(truth - guess) / 100


def circular_error(left: int, right: int, period: int) -> float:
    """Distance of two positions of a hand, over half its period."""
    apart = abs(left - right) % period
    return min(apart, period - apart) / (period / 2)


def scores(
    found: Sequence[Attributes], truths: Sequence[Attributes], stated: Sequence[AbstractSet[str]] | None = None
) -> dict[str, float]:
    """Mean scores of predicted attributes over n images.

    Args:
      found: predicted attributes.
      truths: true attributes.
      stated: kinds (of ``KINDS``) that count for each image, as ``stated_kinds`` gives them; all by default.

    Returns:
      ``weather``, ``weather_position``, ``battery_position``, ``hour`` (of twelve), ``minute``, ``second``: shares that
      are right; ``minute_near`` and ``battery_near``: off by 3 minutes and 10% at most. ``time`` and ``battery``: the
      scores of arXiv 2505.23043, see above. ``color_error``: mean absolute difference of RGB, of 255; ``color_name``:
      the share whose name is right. ``total``: the mean of weather, time, battery and the two positions. What counts
      for no image is left out, and so is then ``total``.
    """
    results: dict[str, float] = {}
    for kind, names in _SCORES.items():
        counted = [
            _score(kind, read, truth)
            for number, (read, truth) in enumerate(zip(found, truths, strict=True))
            if stated is None or kind in stated[number]
        ]
        if counted:
            results |= dict(zip(names, np.mean(counted, axis=0).tolist(), strict=True))
    mains = [results[_SCORES[kind][0]] for kind in QUESTION_KINDS if _SCORES[kind][0] in results]
    if len(mains) == len(QUESTION_KINDS):
        results["total"] = float(np.mean(mains))
    return results


def _score(kind: str, read: Attributes, truth: Attributes) -> tuple[float, ...]:
    """The numbers that ``_SCORES`` names for a kind."""
    if kind == "time":
        hands = [(watch.hour % 12, watch.minute, watch.second) for watch in (truth, read)]
        right = (float(wanted == shown) for wanted, shown in zip(*hands, strict=True))
        apart = abs(truth.minute - read.minute)
        return (time_score(hands[0], hands[1]), *right, float(min(apart, PERIODS[1] - apart) <= NEAR_MINUTES))
    if kind == "battery":
        near = abs(truth.battery - read.battery) <= NEAR_CHARGE
        return battery_score(truth.battery, read.battery), float(near)
    if kind == "color":
        apart = np.abs(np.subtract(read.color, truth.color)).mean()
        return float(apart), float(color_name(read.color) == color_name(truth.color))
    return (float(read.answer(kind) == truth.answer(kind)),)


def stated_kinds(text: str, truth: Attributes) -> set[str]:
    """The kinds of attributes that a text about a watch states correctly; a color by its name."""
    text = re.sub(r"rgb\([^)]*\)", "", text)  # a shade has numbers like a charge's
    answers = {**{kind: truth.answer(kind) for kind in QUESTION_KINDS}, "color": color_name(truth.color)}
    return {kind for kind, answer in answers.items() if re.search(rf"(?<![\w-]){re.escape(answer)}(?![\w-])", text)}


def attributes_table(title: str, found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines with the scores of several predictions, by name."""
    lines = [f"{title:<22}" + "".join(f"{name:>10}" for name in _HEADINGS.values())]
    for name, scored in found.items():
        cells = (f"{scored[key]:>10.3f}" if key in scored else f"{'–':>10}" for key in _HEADINGS)
        lines.append(f"  {name.replace('_', ' '):<20}{''.join(cells)}")
    return lines
