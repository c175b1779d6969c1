"""Answers about held-out pictures of any dataset, each score beside that of the best constant answer.

Exact match and token F1 are SQuAD's (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1, and its evaluation script):
of texts in lower case, without ASCII punctuation, articles and spaces around words.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RESAMPLES = 2000


@dataclass(frozen=True)
class AnswerScore:
    """Means over ``count`` answers, and the same for one answer to all of them.

    ``exact``: the share that is right word for word. ``f1``: of tokens. ``constant``: the training answer that is like
    most others; ``constant_exact`` and ``constant_f1`` are what it would score here. ``gain``: the 95% interval of the
    difference between ``f1`` and ``constant_f1``.
    """

    exact: float
    f1: float
    constant_exact: float
    constant_f1: float
    constant: str
    gain: tuple[float, float]
    count: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "gain": list(self.gain)}


def score(answers: Sequence[str], truths: Sequence[str], constant: str) -> AnswerScore:
    """The score of n answers.

    Args:
      answers: of the model.
      truths: what each should have been.
      constant: the answer to compare with, chosen without looking at these truths.

    Raises:
      ValueError: there are none, or not as many of one as of the other.
    """
    if not answers:
        raise ValueError("expected at least one answer")
    given = np.asarray([token_f1(answer, truth) for answer, truth in zip(answers, truths, strict=True)])
    always = np.asarray([token_f1(constant, truth) for truth in truths])
    return AnswerScore(
        float(np.mean([exact_match(answer, truth) for answer, truth in zip(answers, truths, strict=True)])),
        float(given.mean()),
        float(np.mean([exact_match(constant, truth) for truth in truths])),
        float(always.mean()),
        constant,
        interval(given - always),
        len(answers),
    )


def best_constant(answers: Sequence[str]) -> str:
    """The one of n answers whose mean token F1 with all of them is highest; the first, of several.

    Raises:
      ValueError: there are none.
    """
    if not answers:
        raise ValueError("expected at least one answer")
    words = [_numbered(answer) for answer in answers]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(word for text in words for word in text))}
    # The second "the same" of an answer is another word than its first, so that what two have in common is a product.
    there = np.zeros((len(words), len(vocabulary)), np.float32)
    for row, text in zip(there, words, strict=True):
        row[[vocabulary[word] for word in text]] = 1.0
    lengths = there.sum(axis=1)
    together = lengths[:, None] + lengths
    f1 = np.where(together > 0, 2 * (there @ there.T) / np.maximum(together, 1.0), 1.0)
    return answers[int(np.argmax(f1.mean(axis=1)))]


def exact_match(answer: str, truth: str) -> float:
    """1 when both are the same words in the same order, else 0."""
    return float(_words(answer) == _words(truth))


def token_f1(answer: str, truth: str) -> float:
    """2·c / (a + t), of c words in common, a words of the answer and t of the truth; 1 where neither has any."""
    given, true = Counter(_words(answer)), Counter(_words(truth))
    total = given.total() + true.total()
    return 2 * (given & true).total() / total if total else 1.0


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a mean of n paired differences, by the percentile bootstrap (Efron 1979); always the same."""
    draws = np.random.default_rng(0)
    size = len(differences)
    means = [differences[draws.integers(size, size=size)].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def as_json(scores: Mapping[str, AnswerScore]) -> dict[str, dict[str, Any]]:
    """Scores as plain values."""
    return {name: value.as_json() for name, value in scores.items()}


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _numbered(text: str) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    numbered = []
    for word in _words(text):
        numbered.append((word, seen[word]))
        seen[word] += 1
    return numbered
