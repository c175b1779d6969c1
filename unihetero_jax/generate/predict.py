"""Predict functions of a trained model: text in, pictures in, text out, pictures out; NumPy on both sides.

n requests, N visual tokens an image, F size of what is drawn for a token, H × W pixels.

A predictor is made once for a trained model and knows nothing of datasets: evaluators and ``unihetero generate`` call
the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from unihetero_jax.config import generating_loss, visual_tokens
from unihetero_jax.errors import UsageError
from unihetero_jax.generate.decode import Decoded, Ids, Numbers, Plan
from unihetero_jax.generate.programs import Program, absent_towers, programs
from unihetero_jax.generate.requests import (
    Generated,
    Layout,
    Picture,
    Prompt,
    Request,
    check,
    cut,
    left_pad,
    pieces,
)
from unihetero_jax.generate.sampling import Sampling, validate
from unihetero_jax.generate.stopping import decode_until, ends_at
from unihetero_jax.model.trained import Trained
from unihetero_jax.model.vision import BOTH, INPUT, TARGET
from unihetero_jax.parallel.mesh import place, sharding

ANSWER_LIMIT = 16
PHRASE_LIMIT = 24

# Prompts are padded to a multiple of this many slots: each length is a program to compile, each slot time to compute.
_BUCKET = 16
_WORD = 0xFFFFFFFF

Images = UInt8[np.ndarray, "n H W 3"]


@dataclass(frozen=True)
class Reply:
    """Text, and whether the model ended it with the marker that begins a picture."""

    text: str
    wants_picture: bool


@dataclass(frozen=True)
class Drawn:
    """What the model made of requests.

    ``text``: the words before each picture. ``embeddings`` [n, N, F] float32: what was drawn (of codes, their vectors),
    each token after the ones before it. ``images`` [n, H, W, 3] uint8; None without a pixel head. ``forced`` [n] bool:
    the model did not ask to draw within the limit; the marker was put there for it.
    """

    text: list[str]
    embeddings: np.ndarray
    images: np.ndarray | None
    forced: np.ndarray


@dataclass(frozen=True)
class Taught:
    """Predictions made with the true image before each visual token: as ``embeddings`` and ``images`` of ``Drawn``."""

    embeddings: np.ndarray
    images: np.ndarray | None


@dataclass(frozen=True)
class Scored:
    """How likely a model finds an answer.

    ``log_likelihood``: natural, summed over its tokens. ``tokens``: of the answer and what ends it. ``greedy``: whether
    every one of them is the likeliest, so that the model would answer just this.
    """

    log_likelihood: float
    tokens: int
    greedy: bool


class Predictor:
    """Predict functions of a trained model; every function may be called with any number of requests.

    Requests go through the model ``config.evaluate.batch_size`` at a time, fewer when there are fewer, split over the
    devices of the model's mesh. What is predicted for one depends on no other. Programs are compiled once a shape and
    shared by all predictors of the same config.

    Args:
      trained: the model.
    """

    def __init__(self, trained: Trained):
        self.config = trained.config
        self.tokenizer = coder = trained.tokenizer
        self._params = trained.params
        self._mesh = trained.mesh
        self._absent = absent_towers(trained.config)
        self._programs = programs(trained.config, coder.vocabulary_size, trained.mesh)
        self._image_size = trained.config.data.image_size
        shown, drawn = visual_tokens(trained.config)
        role = BOTH if trained.config.data.input_role == "both" else INPUT
        self._layout = Layout(coder, {INPUT: shown, TARGET: drawn, BOTH: drawn}, role)

    @property
    def draws(self) -> bool:
        """Whether the model has a head for what its pictures are made of."""
        return not self.missing_head

    @property
    def missing_head(self) -> str:
        """The setting that would give a model that cannot draw its head; empty for one that can."""
        generation = self.config.model.generation
        if generating_loss(self.config, generation) is not None:
            return ""
        return f"config.losses.{'pixel' if generation == 'latents' else generation}.weight"

    @property
    def has_pixels(self) -> bool:
        """Whether what is drawn becomes a picture: codes and latents do, embeddings do with a pixel head."""
        return self.config.model.generation != "semantic" or generating_loss(self.config, "latents") is not None

    def prompt(self, text: str, image: np.ndarray | None = None) -> Prompt:
        """A user's turn and the opening of the model's, laid out as in training: the image, if any, before the text.

        Args:
          text: what the user says.
          image: [H, W, 3] uint8, of the model's size.
        """
        return self._layout.request(_asked(text, image))

    def slots(self, request: Request) -> int:
        """How many slots a request takes."""
        return len(self._layout.request(request))

    def generate(self, requests: Sequence[Request | str], sampling: Sampling | None = None) -> list[Generated]:
        """What the model says to each request, texts and pictures as they come.

        The same request gives the same result under the same sampling, whatever others it is given with.

        Args:
          requests: n of them, images [H, W, 3] uint8 of the model's size; a string is a user's only turn.
          sampling: how, and how much; the likeliest text and at most one picture by default.

        Raises:
          UsageError: a setting that cannot work; an unknown speaker; what is neither text nor an image of the model's
            size; pictures of a model that makes none.
        """
        sampling = Sampling() if sampling is None else sampling
        validate(sampling)
        if sampling.must_draw and not self.draws:
            raise UsageError(f"sampling.must_draw=True: the model has no head that draws ({self.missing_head} is 0)")
        if sampling.pixel_guidance not in (None, 1) and not self._guides_pixels:
            raise UsageError(
                f"sampling.pixel_guidance={sampling.pixel_guidance}: expected None; only a diffusion head behind "
                "embeddings that was trained with a condition_dropout can be guided there"
            )
        asked = [Request.of(request) if isinstance(request, str) else request for request in requests]
        for request in asked:
            check(request, self._image_size)
        seeds = [request.seed & _WORD for request in asked]
        doubled = self._guidance(sampling) == "rows"
        away = [self._layout.request(request, words=False) for request in asked] if doubled else None
        return self._generate([self._layout.request(request) for request in asked], sampling, away, seeds)

    def answer(
        self, images: Images, questions: Sequence[str], limit: int = ANSWER_LIMIT, stop: Sequence[str] = ()
    ) -> list[str]:
        """The answer to a question about each image.

        Args:
          images: one a question, of the model's size.
          questions: n of them.
          limit: most tokens an answer.
          stop: texts; an answer is cut before the first of them.

        Raises:
          UsageError: ``stop`` is one text, or has an empty one.
        """
        return [reply.text for reply in self.reply(images, questions, limit, stop)]

    def reply(
        self, images: Images | None, texts: Sequence[str], limit: int = ANSWER_LIMIT, stop: Sequence[str] = ()
    ) -> list[Reply]:
        """Text for each user's turn, with or without images, up to where the model stops or would draw: ``answer``."""
        pictures = [None] * len(texts) if images is None else list(images)
        return self._write([self.prompt(text, image) for text, image in zip(texts, pictures, strict=True)], limit, stop)

    def score(self, requests: Sequence[Request | str], answers: Sequence[str]) -> list[Scored]:
        """How likely the model finds each answer to its request, ended as in training: for questions with choices.

        Args:
          requests: n of them, as for ``generate``.
          answers: one a request, texts alone.

        Raises:
          UsageError: as ``generate`` for what is asked.
        """
        coder = self.tokenizer
        prompts, lengths = [], []
        for request, answer in zip(requests, answers, strict=True):
            asked = Request.of(request) if isinstance(request, str) else request
            check(asked, self._image_size)
            ids = [*coder.encode(answer.strip()), coder.end_id]
            prompts.append(self._layout.request(asked).followed_by(ids))
            lengths.append(len(ids))
        scored = -(-max(lengths) // _BUCKET) * _BUCKET
        found: list[Scored] = []
        for part, rows in self._parts(prompts):
            own = np.asarray(lengths[part] + [0] * (rows - len(lengths[part])))
            # One slot more than the longest answer: what comes before the first of its tokens predicts it.
            learned = (np.arange(scored) >= scored - own[:, None]).astype(np.float32)
            batch = self._batch(prompts[part], rows, prompts, least=scored + 1)
            made = self._programs["score"](self._params, batch, place(learned, sharding(self._mesh, "batch")))
            likelihoods, greedy = (np.asarray(made[name]).tolist() for name in ("log_likelihood", "greedy"))
            # What stands behind the answers is rows of padding.
            found += map(Scored, likelihoods, lengths[part], greedy)
        return found

    def continue_text(self, texts: Sequence[str], limit: int = PHRASE_LIMIT, stop: Sequence[str] = ()) -> list[str]:
        """What follows each text when nobody speaks in turn: the model as a plain language model; ``stop`` as above."""
        coder = self.tokenizer
        prompts = [self._layout.parts([coder.begin_id, *coder.encode(text)], []) for text in texts]
        return [reply.text for reply in self._write(prompts, limit, stop)]

    def draw(self, requests: Sequence[str], images: Images | None = None, limit: int = PHRASE_LIMIT) -> Drawn:
        """A picture for each request: the model writes its phrase, then the image, one embedding after another.

        Args:
          requests: n of them.
          images: a picture to each request, of the model's size; none by default.
          limit: most tokens of the phrase.

        Raises:
          ValueError: the model has no head that draws.
        """
        if not self.draws:
            raise ValueError(f"the model has no head that draws: {self.missing_head} is 0")
        shown = [None] * len(requests) if images is None else list(images)
        prompts = [self.prompt(text, image) for text, image in zip(requests, shown, strict=True)]
        made = self._generate(prompts, Sampling(max_tokens=limit, must_draw=True), ends_with_image=True)
        pictures = [generated.pictures[0] for generated in made]
        pixels = [picture.pixels for picture in pictures if picture.pixels is not None]
        drawn = np.stack([picture.drawn for picture in pictures])
        return Drawn(
            [generated.text for generated in made],
            np.asarray(self._programs["vectors"](self._params, drawn)),
            np.stack(pixels) if pixels else None,
            np.asarray([picture.forced for picture in pictures]),
        )

    def teach(self, requests: Sequence[str], phrases: Sequence[str], images: Images) -> Taught:
        """What the model predicts for each visual token when it is shown the ones before it.

        Args:
          requests: what the user says.
          phrases: what the model says before the picture.
          images: the true pictures, of the model's size.
        """
        if not self.draws:
            raise ValueError(f"the model has no head that draws: {self.missing_head} is 0")
        coder = self.tokenizer
        prompts = []
        for request, phrase, image in zip(requests, phrases, images, strict=True):
            parts = [coder.begin_id, coder.user_id, request, coder.assistant_id, phrase, image]
            # The row ends with the last visual token, so that these are the last N slots whatever came before.
            prompts.append(self._layout.parts(parts, [TARGET]).without_last())
        made = self._run(self._programs["teach"], prompts)
        return Taught(made["embeddings"], made.get("images"))

    def reconstruct(self, images: Images) -> Images | None:
        """What would be left of pictures that are drawn without an error; None where nothing makes pixels.

        Codes, latents or raw patches of the true images, as the model's pictures are made of them.
        """
        if not (self.draws and self.has_pixels):
            return None
        return self._run(self._programs["reconstruct"], self._targets(images))["images"]

    def embed(self, images: Images) -> Float[np.ndarray, "n N F"]:
        """What ``draw`` and ``teach`` are to make of images: true embeddings, vectors of codes, or latents."""
        return self._run(self._programs["embed"], self._targets(images))["embeddings"]

    def states(self, images: Images) -> dict[str, Float[np.ndarray, "n S"]]:
        """What there is of images that are shown, at their slots and pooled as ``pooling.pooled`` does.

        ``adapter``: their embeddings. ``layer_01``, …: the residual stream after each layer of the decoder.
        """
        coder = self.tokenizer
        prompts = [
            # The row ends with the last visual token.
            self._layout.parts([coder.begin_id, coder.user_id, image], [self._layout.shown]).without_last()
            for image in images
        ]
        return self._run(self._programs["states"], prompts)

    def text(self, batch: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Σ cross-entropy (nats) of the text of packed rows, and how many tokens it is of.

        Args:
          batch: as for ``held_out``.
        """
        made = self._whole("text", batch)
        return float(made["sum"]), float(made["weight"])

    def held_out(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Teacher-forced sums over packed rows: see ``evaluate.losses``, which takes this function.

        Args:
          batch: a packed batch; rows are added, with no weight, so that the devices divide it.
        """
        return self._whole("held_out", batch)

    def _whole(self, program: str, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a program makes of packed rows, and of empty ones behind them that the devices need."""
        rows = self._rows(len(batch["tokens"]))
        padded = {
            name: np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()
        }
        made = self._programs[program](self._params, self._place(padded))
        return {name: np.asarray(array) for name, array in made.items()}

    def _targets(self, images: Images) -> list[Prompt]:
        """Rows without a word that hold an image to be drawn each."""
        empty = self._layout.parts([self.tokenizer.begin_id], [])
        return [replace(empty, images=(image,), roles=(TARGET,)) for image in images]

    @property
    def _guides_pixels(self) -> bool:
        """Whether a diffusion head makes pixels of embeddings, and knows a null condition."""
        pixel = generating_loss(self.config, "latents")
        return self.config.model.generation == "semantic" and pixel is not None and pixel.null_condition

    def _guidance(self, sampling: Sampling) -> str:
        """How pictures are guided: see ``Plan``."""
        if not self.draws or not sampling.max_images:
            return "none"
        pixel, latents = generating_loss(self.config, "latents"), self.config.model.generation == "latents"
        if sampling.guidance is None:
            return "configured" if latents else "none"
        if sampling.guidance == 1:
            return "none"
        own = latents and pixel is not None and pixel.null_condition
        return "head" if own else "rows"

    def _write(self, prompts: Sequence[Prompt], limit: int, stop: Sequence[str]) -> list[Reply]:
        sampling = Sampling(max_tokens=limit, max_images=0, stop_texts=stop)
        validate(sampling)
        made = self._generate(prompts, sampling)
        return [Reply(generated.text, generated.stop == "image") for generated in made]

    def _generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        away: Sequence[Prompt] | None = None,
        seeds: Sequence[int] | None = None,
        ends_with_image: bool = False,
    ) -> list[Generated]:
        """Generates for prompts, batch after batch; with ``away``, guided away from what is predicted for those."""
        plan = Plan(
            sampling.max_tokens,
            sampling.max_images if self.draws else 0,
            sampling.must_draw,
            ends_with_image,
            sampling.text.rule,
            sampling.codes.rule,
            self._guidance(sampling),
        )
        coder = self.tokenizer
        markers = (jnp.int32(marker) for marker in (coder.image_start_id, coder.image_pad_id, coder.image_end_id))
        arguments = (
            plan,
            Numbers(*map(jnp.float32, (sampling.text.numbers, sampling.codes.numbers, sampling.guidance or 0))),
            Ids(jnp.asarray([coder.end_id, *sampling.stop_ids], jnp.int32), *markers),
            np.uint32(sampling.seed),
        )
        generated: list[Generated] = []
        for part, rows in self._parts(prompts):
            own = [0] * len(prompts[part]) if seeds is None else seeds[part]
            words = [(prompt.digest, seed) for prompt, seed in zip(prompts[part], own, strict=True)]
            requests = np.asarray([*words, *[words[-1]] * (rows - len(words))], np.uint32)
            pairs = [prompts[part]] if away is None else [prompts[part], away[part]]
            beside = [prompt for pair in zip(*pairs, strict=True) for prompt in pair]
            batch = self._batch(beside, rows * plan.ways, prompts)
            if sampling.stop_texts:
                enough = ends_at(sampling.stop_texts, coder, self._layout.tokens[TARGET])
                made = decode_until(self._programs, self._params, batch, requests, *arguments, len(words), enough)
            else:
                made = self._programs["generate"](self._params, batch, requests, *arguments)
            generated += self._assemble(made, len(words), requests, sampling)
        return generated

    def _assemble(self, made: Decoded, count: int, requests: np.ndarray, sampling: Sampling) -> list[Generated]:
        """What was decoded for the first ``count`` requests of a batch as texts and pictures."""
        coder = self.tokenizer
        ids, length, stop, images, forced = (
            np.asarray(array)[:count] for array in (made.ids, made.length, made.stop, made.images, made.forced)
        )
        index = [(row, image) for row in range(count) for image in range(images[row])]
        drawn = np.asarray(made.drawn) if index else np.zeros(0)
        pixels: Sequence[np.ndarray | None] = [None] * len(index)
        if index and self.has_pixels:
            # As many as are drawn, not as many as could be: this is where a tower's decoder or a diffusion head runs.
            padded = np.asarray([*index, *[index[-1]] * (self._rows(len(index)) - len(index))], np.int32)
            seed = np.uint32(sampling.seed)
            guided = sampling.pixel_guidance is not None and self._guides_pixels
            scale = np.float32(sampling.pixel_guidance) if guided else None
            pixels = list(np.asarray(self._programs["pictures"](self._params, made, padded, requests, seed, scale)))
        shown = {place: pixels[number] for number, place in enumerate(index)}
        generated = []
        for row in range(count):
            segments: list[str | Picture] = []
            number = 0
            for run in pieces(ids[row, : length[row]].tolist(), coder.image_start_id, self._layout.tokens[TARGET]):
                if run is None:
                    place = row, number
                    segments.append(Picture(drawn[place], shown[place], bool(forced[place])))
                    number += 1
                else:
                    segments.append(coder.decode(run))
            kept, found = cut(segments, sampling.stop_texts)
            ends_drawing = number > 0 and ids[row, length[row] - 1] == coder.image_pad_id
            generated.append(Generated(kept, "stop" if found else self._reason(int(stop[row]), ends_drawing)))
        return generated

    def _reason(self, stop: int, ends_drawing: bool) -> Literal["end", "stop", "image", "drawn", "length"]:
        if stop == self.tokenizer.image_start_id:
            return "image"
        if stop < 0:
            return "drawn" if ends_drawing else "length"
        return "end" if stop == self.tokenizer.end_id else "stop"

    def _rows(self, count: int) -> int:
        """Rows of a batch for so many requests, a multiple of what the devices split rows over.

        A power of two, so that few programs are compiled, or the whole batch size.
        """
        groups = self._mesh.shape["slice"] * self._mesh.shape["fsdp"]
        rows = min(1 << (count - 1).bit_length(), max(self.config.evaluate.batch_size, count))
        return -(-rows // groups) * groups

    def _place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        where = sharding(self._mesh, "batch")
        return {name: place(array, where) for name, array in batch.items()}

    def _parts(self, prompts: Sequence[Prompt]) -> Iterator[tuple[slice, int]]:
        """The prompts of each batch, and its rows."""
        if not prompts:
            raise ValueError("expected at least one request")
        size = self.config.evaluate.batch_size
        for start in range(0, len(prompts), size):
            yield slice(start, start + size), self._rows(min(len(prompts), size))

    def _batch(
        self, prompts: Sequence[Prompt], rows: int, like: Sequence[Prompt], least: int = 1
    ) -> dict[str, jax.Array]:
        """Some prompts on the devices, in arrays that have room for every prompt of ``like``, and ``least`` slots."""
        slots = -(-max(least, *map(len, like)) // _BUCKET) * _BUCKET
        images = max(1, *(len(prompt.images) for prompt in like))
        batch = left_pad(prompts, rows, slots, images, self._image_size)
        for name in self._absent:
            section, key = getattr(self.config.model, name), f"config.model.{name}"
            if any(prompt.images for prompt in like):
                raise UsageError(
                    f"{key}.cached=True: the model learned from features computed before and has no tower of its own; "
                    "it can be asked in words alone"
                )
            size = section.tokens(self._image_size, key), section.stored_features
            batch[f"{name}_features"] = np.zeros((rows, images, *size), np.float32)
        return self._place(batch)

    def _run(self, program: Program, prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """A program's results for all prompts, batch after batch, rows of padding cut off."""
        found: list[dict[str, np.ndarray]] = []
        for part, rows in self._parts(prompts):
            words = np.zeros((rows, 2), np.uint32)
            words[: len(prompts[part]), 0] = [prompt.digest for prompt in prompts[part]]
            made = program(self._params, self._batch(prompts[part], rows, prompts), words)
            found.append({name: np.asarray(array)[: len(prompts[part])] for name, array in made.items()})
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _asked(text: str, image: np.ndarray | None) -> Request:
    return Request.of(text) if image is None else Request.of(image, text)
