"""Answers about held-out images of datasets other than Smart Watch, each beside the best constant answer.

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

from unihetero_jax.config.components import EVALUATORS, EvaluatorConfig
from unihetero_jax.evaluate.base import EXAMPLE, Context, Result
from unihetero_jax.evaluate.common import figures, held_out
from unihetero_jax.evaluate.common.held_out import Questions

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RESAMPLES = 2000


@dataclass(frozen=True)
class AnswersConfig(EvaluatorConfig):
    """Answers to captions and questions of other datasets: ``config.evaluate.questions`` per task, at most."""


@dataclass(frozen=True)
class AnswerScore:
    """Means over some answers, and the same for one answer to all of their questions.

    Attributes:
      exact: share of answers that are right word for word.
      f1: mean token F1.
      constant_exact: ``exact`` of the constant answer.
      constant_f1: ``f1`` of the constant answer.
      constant: the training answer with the highest mean F1 among the training answers.
      gain: 95% interval of the difference between ``f1`` and ``constant_f1``.
      count: number of answers.
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


@EVALUATORS.register("answers", config=AnswersConfig)
def evaluate(config: AnswersConfig, context: Context) -> Result:
    """Ask about each dataset and task that the run has training answers for."""
    del config
    asked, constants, limit = _questions(context)
    scores: dict[str, AnswerScore] = {}
    files: dict[str, Any] = {}
    for name, questions in asked.items():
        given = context.predictor.answer(questions.images, questions.questions, limit)
        scores[name] = score(given, questions.truths, constants[name])
        if len(scores) == 1 and (some := context.options.pictures):
            right = [exact_match(*pair) == 1.0 for pair in zip(given[:some], questions.truths[:some], strict=True)]
            texts = questions.images[:some], questions.truths[:some], given[:some], right
            files[figures.CAPTIONS] = figures.captions(*texts, context.step)
        if len(scores) == 1 and context.smart_watch is None:
            files[EXAMPLE] = questions.images[0]
    return Result({name: found.as_json() for name, found in scores.items()}, table(scores) if scores else (), files)


def _questions(context: Context) -> tuple[dict[str, Questions], dict[str, str], int]:
    """Questions and the best constant answer, by dataset and task; and the most tokens of an answer."""
    config, coder = context.config, context.predictor.tokenizer
    train = {entry.name: entry for entry in held_out.entries(config, context.data_root, held_out.TRAIN)}
    known: dict[str, list[str]] = {}
    asked: dict[str, Questions] = {}
    for entry in held_out.entries(config, context.data_root, held_out.TEST):
        questions = held_out.questions(config, entry)
        if questions is not None and entry.name in train and (found := held_out.training_answers(train[entry.name])):
            known[entry.name], asked[entry.name] = found, questions
    # As long as any training answer that fits a row. One limit, because each is a program to compile.
    longest = max((len(coder.encode(answer)) for found in known.values() for answer in found), default=0)
    return asked, {name: best_constant(found) for name, found in known.items()}, min(longest + 1, config.data.seq_len)


def table(scores: Mapping[str, AnswerScore]) -> list[str]:
    """Lines for the screen."""
    lines = [f"{'answers':<25}{'model':>9}{'constant':>10}{'gain, 95%':>18}{'count':>8}"]
    for name, found in scores.items():
        low, high = found.gain
        gain = f"{low:+.3f} … {high:+.3f}"
        lines.append(f"  {f'{name}, F1':<23}{found.f1:>9.3f}{found.constant_f1:>10.3f}{gain:>18}{found.count:>8,}")
        lines.append(f"  {f'{name}, exact':<23}{found.exact:>9.3f}{found.constant_exact:>10.3f}")
        lines.append(f"  (constant: always {figures.shortened(found.constant)!r})")
    return lines


def score(answers: Sequence[str], truths: Sequence[str], constant: str) -> AnswerScore:
    """Score n answers.

    Args:
      answers: the model's answers, at least one.
      truths: the true answers.
      constant: the answer to compare with, chosen without these truths.

    Raises:
      ValueError: there are no answers, or another number of truths.
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


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _numbered(text: str) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    numbered = []
    for word in _words(text):
        numbered.append((word, seen[word]))
        seen[word] += 1
    return numbered
