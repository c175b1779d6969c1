"""Questions about held-out Smart Watch images: the scores of arXiv 2505.23043, each beside that of guessing.

time and battery: see ``common.attributes``. weather, position: 1 when the truth is a substring of the answer. total:
the mean over all questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unihetero_jax.config.components import EVALUATORS, EvaluatorConfig
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.smart_watch import POSITIONS, WEATHERS, Attributes
from unihetero_jax.evaluate.base import EXAMPLE, Context, Result
from unihetero_jax.evaluate.common import smart_watch
from unihetero_jax.evaluate.common.attributes import (
    PERIODS,
    battery_score,
    circular_error,
    read_battery,
    read_time,
    time_score,
)

GROUPS = {
    "weather": ("weather",),
    "time": ("time",),
    "position": ("battery_pos", "weather_pos"),
    "battery": ("battery",),
}
"""The kinds of question that each score is about."""

Answer = Callable[[np.ndarray, Sequence[str]], Sequence[str]]
"""(images [n, H, W, 3] uint8, n questions) → n answers."""


@dataclass(frozen=True)
class VqaConfig(EvaluatorConfig):
    """Questions about Smart Watch images: at most ``config.evaluate.questions`` per group of kinds."""


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
      kind: of the question.
      text: its words.
      image: index of the image.
      truth: attributes of the image.
    """

    kind: str
    text: str
    image: int
    truth: Attributes


@dataclass(frozen=True)
class Score:
    """A mean score, and what would be scored without the images.

    Attributes:
      score: mean over the questions, 0 to 1.
      chance: expected score of a uniformly random guess among the possible answers.
      constant: score of the one answer that is best for these very questions.
      count: number of questions.
    """

    score: float
    chance: float
    constant: float
    count: int


@EVALUATORS.register("vqa", config=VqaConfig)
def evaluate(config: VqaConfig, context: Context) -> Result:
    """Ask questions about the test split of the run's Smart Watch dataset."""
    del config
    if context.smart_watch is None:
        return Result()
    images, asked = questions(context.smart_watch, context.config.data.image_size, context.options.questions)
    scores = score_answers(context.predictor.answer, images, asked)
    numbers = {name: dict(vars(value)) for name, value in scores.items()}
    return Result(numbers, table(scores), {EXAMPLE: images[0]})


def questions(root: Path, image_size: int, limit: int) -> tuple[np.ndarray, list[Question]]:
    """The first questions of each group of kinds.

    Args:
      root: directory of the dataset.
      image_size: pixels per side.
      limit: questions per group, at most.

    Returns:
      The images, [m, H, W, 3] uint8, and questions about them.

    Raises:
      UsageError: the directory holds no Smart Watch dataset.
    """
    group_of = {kind: name for name, kinds in GROUPS.items() for kind in kinds}
    missing = dict.fromkeys(GROUPS, limit)
    images: list[np.ndarray] = []
    found: list[Question] = []
    for record in smart_watch.records(root, "vqa"):
        if not any(missing.values()):
            break
        texts = [text for speaker, text in smart_watch.turns(record) if speaker == "human"]
        chosen: list[Question] = []
        for kind, text in zip((str(kind, "utf-8") for kind in record["kinds"]), texts, strict=True):
            if missing[group_of[kind]]:
                missing[group_of[kind]] -= 1
                chosen.append(Question(kind, text, len(images), Attributes.from_json(record["attributes"])))
        if chosen:
            images.append(decode(record["image"], image_size))
            found += chosen
    return np.stack(images), found


def score_answers(answer: Answer, images: np.ndarray, questions: Sequence[Question]) -> dict[str, Score]:
    """Score the answers to questions, each asked on its own.

    Args:
      answer: the predict function.
      images: the images that the questions are about, [m, H, W, 3] uint8.
      questions: at least one.

    Returns:
      A score for each of ``GROUPS`` that has questions, and ``total``; then one for each kind of a group of several.
    """
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


def chance(truths: Sequence[tuple[str, Attributes]]) -> float:
    """Mean score expected of a uniformly random answer to each (kind, truth)."""
    return float(np.mean([_chance(kind, truth) for kind, truth in truths]))


def constant(truths: Sequence[tuple[str, Attributes]]) -> float:
    """The highest mean score that one answer to all of these (kind, truth) gets; all of one of ``GROUPS``."""
    kind = truths[0][0]
    if kind == "time":
        # The score is a mean of three errors, so that each hand has a best guess of its own.
        times = np.asarray([(truth.hour, truth.minute, truth.second) for _, truth in truths])
        best = [
            min(float(np.mean([circular_error(int(t), guess, period) for t in column])) for guess in range(period))
            for column, period in zip(times.T, PERIODS, strict=True)
        ]
        return 1 - float(np.mean(best))
    if kind == "battery":
        # The median has the least absolute error.
        charges = np.asarray([truth.battery for _, truth in truths])
        return 1 - float(np.mean(np.abs(charges - np.median(charges)))) / 100
    return max(Counter(truth.answer(kind) for kind, truth in truths).values()) / len(truths)


def table(scores: Mapping[str, Score]) -> list[str]:
    """Lines for the screen."""
    lines = [f"{'questions':<22}{'score':>9}{'chance':>9}{'constant':>10}{'count':>8}"]
    for name, found in scores.items():
        lines.append(f"  {name:<20}{found.score:>9.3f}{found.chance:>9.3f}{found.constant:>10.3f}{found.count:>8,}")
    return lines


def _chance(kind: str, truth: Attributes) -> float:
    if kind == "time":
        return 0.5  # the mean distance of a uniform point of a circle is half the largest, for even periods too
    if kind == "battery":
        return float(np.mean([battery_score(truth.battery, guess) for guess in range(101)]))
    return 1 / len(WEATHERS if kind == "weather" else POSITIONS)
