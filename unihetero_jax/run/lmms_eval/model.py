"""A trained model for lmms-eval (extra ``eval``): POPE, GQA, MMBench and its other tasks run on our checkpoints.

    lmms-eval eval --model unihetero --model_args workdir=runs/mine --tasks pope,gqa

lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval) finds the model through the entry point ``lmms_eval.models``
once both packages are installed.

Arguments of the model: ``workdir``; ``step``, the newest by default; ``fit``, how a picture becomes square:
``stretch`` (as in training, unless a source says otherwise), ``crop`` or ``pad``; ``max_new_tokens``, where the task
gives none. ``--batch_size`` is how many requests go through the model at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image

from unihetero_jax.data.records.images import Fit
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.record import IMAGE_TOKEN
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.generate.pictures import square
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.generate.requests import Part, Request
from unihetero_jax.generate.sampling_options import Choice, Sampling
from unihetero_jax.run.load_model import load_trained

log = logging.getLogger(__name__)

# Pictures of so many batches are in memory at a time.
_BATCHES = 8
# Of how a picture is cut up, and of caches.
_IGNORED = frozenset({"image_aspect_ratio", "image_sizes", "use_cache", "image"})
_SETTINGS = ("workdir", "step", "fit", "max_new_tokens", "batch_size")


class UniHetero(lmms):
    """What lmms-eval asks of a model. It is made from strings, as they stand in ``--model_args``.

    Args:
      workdir: of ``unihetero train``.
      step: the checkpoint; the newest by default.
      fit: how a picture becomes square.
      max_new_tokens: of an answer, where the task gives no limit.
      batch_size: requests that go through the model at a time.
      unknown: anything else is refused, but for what lmms-eval gives every model.

    Raises:
      UsageError: an unknown argument; no such checkpoint.
    """

    is_simple = True

    def __init__(
        self,
        workdir: str = "",
        step: int | str | None = None,
        fit: Fit = "stretch",
        max_new_tokens: int | str = 128,
        batch_size: int | str | None = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        for name in unknown:
            raise UsageError(
                f"--model_args: unknown {name!r}: expected {', '.join(_SETTINGS)}{nearest(name, _SETTINGS)}"
            )
        if not workdir:
            raise UsageError("--model_args: expected workdir=DIR, of `unihetero train`")
        if fit not in get_args(Fit):
            raise UsageError(f"--model_args: fit={fit!r}: expected {', '.join(get_args(Fit))}")
        size = _whole("batch_size", batch_size or 1)
        trained = load_trained(Path(workdir), None if step is None else _whole("step", step))
        evaluate = dataclasses.replace(trained.config.evaluate, batch_size=size)
        trained = dataclasses.replace(trained, config=dataclasses.replace(trained.config, evaluate=evaluate))
        self.predictor = Predictor(trained)
        self._fit: Fit = fit
        self._limit = _whole("max_new_tokens", max_new_tokens)
        self._at_a_time = size * _BATCHES
        self._slots = trained.config.data.seq_len
        self._warned = False

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """An answer to each request, cut before the first text of its ``until``.

        Raises:
          UsageError: a setting of the task that is not known here; a visual that is no picture.
        """
        answers = [""] * len(requests)
        for sampling, numbers in _alike([self._sampling(request.args[1]) for request in requests]):
            for some in _chunks(numbers, self._at_a_time):
                asked = []
                for number in some:
                    context, _, *where = requests[number].args
                    asked.append(self._request(context, self._document(*where)[1]))
                for number, made in zip(some, self.predictor.generate(asked, sampling), strict=True):
                    answers[number] = made.text.strip()
                    self.cache_hook.add_partial("generate_until", requests[number].args[:2], answers[number])
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """How unlikely each continuation is, and whether the model would say just this.

        As in lmms-eval's own models the number is not the log-likelihood but the mean negative one a token: its
        multiple-choice tasks take the choice with the least. Each pair is the ``text`` of a ``GenerationResult``,
        because lmms-eval 0.7 makes a string of a bare one.

        Raises:
          UsageError: a visual that is no picture.
        """
        found: list[GenerationResult] = []
        for some in _chunks(range(len(requests)), self._at_a_time):
            asked, answers = [], []
            for number in some:
                context, target, *where = requests[number].args
                # A choice by itself, to be compared with the choice as an answer, comes with no document.
                document, visuals = self._document(*where) if where else (None, [])
                asked.append(self._request(context, visuals))
                answers.append(target(document) if callable(target) else target)
            for scored in self.predictor.score(asked, answers):
                found.append(GenerationResult((-scored.log_likelihood / scored.tokens, scored.greedy)))
        return found

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refused: no conversation in rounds with a task.

        Raises:
          UsageError: always.
        """
        names = ", ".join(sorted({request.task_name for request in requests}))
        raise UsageError(f"--tasks: {names} asks in several rounds; expected tasks that ask once")

    def _document(self, doc_to_visual: Callable[..., Any], number: int, task: str, split: str) -> tuple[Any, Any]:
        """A document of a task, and its visuals."""
        document = self.task_dict[task][split][number]
        return document, doc_to_visual(document)

    def _request(self, context: str, visuals: Any) -> Request:
        """What is asked, with the pictures where the context has ``<image>``, and before it where it has none."""
        size = self.predictor.config.data.image_size
        pictures = [_picture(visual, size, self._fit) for visual in visuals or []]
        texts = context.split(IMAGE_TOKEN)
        if len(texts) - 1 != len(pictures):
            texts = [*[""] * len(pictures), context.replace(IMAGE_TOKEN, " ")]
        parts: list[Part] = []
        for text, picture in itertools.zip_longest(texts, pictures):
            parts += [text.strip()] if text and text.strip() else []
            parts += [] if picture is None else [picture]
        request = Request.of(*parts)
        if not self._warned and (length := self.predictor.slots(request)) > self._slots:
            self._warned = True
            log.warning("a request takes %d slots; the model was trained on rows of %d", length, self._slots)
        return request

    def _sampling(self, settings: Mapping[str, Any]) -> Sampling:
        """The settings of a task (those of Hugging Face's ``generate``) as ours."""
        given = dict(settings)
        until = given.pop("until", ())
        stops = (until,) if isinstance(until, str) else tuple(until or ())
        sampled = bool(given.pop("do_sample", given.get("temperature") or 0))
        temperature, top_p, top_k = (given.pop(name, None) for name in ("temperature", "top_p", "top_k"))
        limit = given.pop("max_new_tokens", None) or self._limit
        if (beams := given.pop("num_beams", None) or 1) != 1:
            raise UsageError(f"num_beams={beams}: expected 1: answers are decoded one token after another")
        for name in sorted(given.keys() - _IGNORED):
            log.warning("setting %r of the task means nothing here", name)
        warm = float(1.0 if temperature is None else temperature) if sampled else 0.0
        return Sampling(
            Choice(warm, int(top_k or 0), float(top_p or 1.0)),
            max_tokens=min(int(limit), self._slots),
            max_images=0,
            stop_texts=tuple(text for text in stops if text),
        )


def _picture(visual: Any, size: int, fit: Fit) -> np.ndarray:
    """A PIL image as the data pipeline makes it: [size, size, 3] uint8."""
    if not isinstance(visual, Image.Image):
        raise UsageError(f"a visual of the task is {type(visual).__name__}: expected pictures (PIL.Image)")
    try:
        return square(visual, size, fit)
    except InvalidRecord as error:
        raise UsageError(f"a picture of the task: {error}") from error


def _alike(samplings: Sequence[Sampling]) -> Iterator[tuple[Sampling, list[int]]]:
    """Each different sampling with the numbers of its requests."""
    groups: dict[Sampling, list[int]] = {}
    for number, sampling in enumerate(samplings):
        groups.setdefault(sampling, []).append(number)
    yield from groups.items()


def _chunks(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _whole(name: str, value: int | str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < (name != "step"):
        raise UsageError(f"{name}={value!r}: expected a whole number")
    return number
