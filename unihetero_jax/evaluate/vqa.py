"""Questions about held-out pictures: the scores of arXiv 2505.23043, each beside what guessing would score.

time: 1 − the mean of the three circular errors, each over its largest value (6 h, 30 min, 30 s), hours modulo 12.
weather, position: 1 when the truth is a substring of the answer. battery: 1 − |Δ| / 100. What cannot be read scores 0.
total: the mean over all questions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unihetero_jax.data.smart_watch import POSITIONS, WEATHERS, Attributes

GROUPS = {
    "weather": ("weather",),
    "time": ("time",),
    "position": ("battery_pos", "weather_pos"),
    "battery": ("battery",),
}
"""The kinds of question that each score is about."""

Answer = Callable[[np.ndarray, Sequence[str]], Sequence[str]]
"""(images [n, H, W, 3] uint8, n questions) → n answers."""

_PERIODS = (12, 60, 60)


@dataclass(frozen=True)
class Question:
    """One question about one picture: its kind, its words, the number of the picture, and what the picture shows."""

    kind: str
    text: str
    image: int
    truth: Attributes


@dataclass(frozen=True)
class Score:
    """A mean ``score`` over ``count`` questions, and what would be scored without looking at any picture.

    ``chance``: expected of a uniformly random guess among the possible answers. ``constant``: of the one answer that is
    best for these very questions.
    """

    score: float
    chance: float
    constant: float
    count: int


def evaluate(answer: Answer, images: np.ndarray, questions: Sequence[Question]) -> dict[str, Score]:
    """Scores the answers to questions, each asked on its own.

    Args:
      answer: the predict function.
      images: [m, H, W, 3] uint8, the pictures that the questions are about.
      questions: about them.

    Returns:
      A score for each of ``GROUPS`` that has questions, and ``total``; then one for each kind of a group of several.
    """
    if not questions:
        return {}
    answers = answer(images[[question.image for question in questions]], [question.text for question in questions])

    def of(kinds: Sequence[str]) -> Score | None:
        chosen = [(q, text) for q, text in zip(questions, answers, strict=True) if q.kind in kinds]
        if not chosen:
            return None
        truths = [(question.kind, question.truth) for question, _ in chosen]
        mean = float(np.mean([score(q.kind, q.truth, text) for q, text in chosen]))
        return Score(mean, chance(truths), constant(truths), len(chosen))

    scores = {name: found for name, kinds in GROUPS.items() if (found := of(kinds))}
    counts = [group.count for group in scores.values()]

    def total(values: Sequence[float]) -> float:
        return float(np.average(values, weights=counts))

    groups = list(scores.values())
    scores["total"] = Score(
        total([group.score for group in groups]),
        total([group.chance for group in groups]),
        total([group.constant for group in groups]),
        len(questions),
    )
    several = [kind for group in GROUPS.values() if len(group) > 1 for kind in group]
    return scores | {kind: found for kind in several if (found := of((kind,)))}


def score(kind: str, truth: Attributes, answer: str) -> float:
    """The score of one answer, 0 to 1.

    Raises:
      ValueError: an unknown kind of question.
    """
    if kind == "time":
        return time_score((truth.hour, truth.minute, truth.second), read_time(answer))
    if kind == "battery":
        return battery_score(truth.battery, read_battery(answer))
    if kind in ("weather", "battery_pos", "weather_pos"):
        return float(truth.answer(kind) in answer)
    raise ValueError(f"unknown kind of question {kind!r}; expected one of {sum(GROUPS.values(), ())}")


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
    """1 − the mean of three circular errors, each over half its period; 0 for no guess."""
    if guess is None:
        return 0.0
    return 1 - float(np.mean([_circular(t, g, period) for t, g, period in zip(truth, guess, _PERIODS, strict=True)]))


def battery_score(truth: int, guess: int | None) -> float:
    """1 − |Δ| / 100; 0 for no guess."""
    return 0.0 if guess is None else 1 - abs(truth - guess) / 100


def chance(truths: Sequence[tuple[str, Attributes]]) -> float:
    """Mean score expected of a uniformly random answer to each of these (kind, truth)."""
    return float(np.mean([_chance(kind, truth) for kind, truth in truths]))


def constant(truths: Sequence[tuple[str, Attributes]]) -> float:
    """The highest mean score that one answer to all of these (kind, truth) gets; all of one of ``GROUPS``."""
    kind = truths[0][0]
    if kind == "time":
        # The score is a mean of three errors, so that each hand has a best guess of its own.
        shown = np.asarray([(truth.hour, truth.minute, truth.second) for _, truth in truths])
        best = [
            min(float(np.mean([_circular(int(t), guess, period) for t in column])) for guess in range(period))
            for column, period in zip(shown.T, _PERIODS, strict=True)
        ]
        return 1 - float(np.mean(best))
    if kind == "battery":
        # The median has the least absolute error.
        shown = np.asarray([truth.battery for _, truth in truths])
        return 1 - float(np.mean(np.abs(shown - np.median(shown)))) / 100
    return max(Counter(truth.answer(kind) for kind, truth in truths).values()) / len(truths)


def as_json(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Scores as plain numbers."""
    return {name: dict(vars(value)) for name, value in scores.items()}


def _circular(left: int, right: int, period: int) -> float:
    apart = abs(left - right) % period
    return min(apart, period - apart) / (period / 2)


def _chance(kind: str, truth: Attributes) -> float:
    if kind == "time":
        return 0.5  # the mean distance of a uniform point of a circle is half the largest, for even periods too
    if kind == "battery":
        return float(np.mean([battery_score(truth.battery, guess) for guess in range(101)]))
    return 1 / len(WEATHERS if kind == "weather" else POSITIONS)
