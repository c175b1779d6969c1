"""Predict functions of a trained model, from text and images to text and images; NumPy on both sides.

n requests, N visual tokens per image, F width of a predicted visual token, H × W pixels.

A predictor is made once for a trained model and knows nothing of datasets: evaluators and ``unihetero generate`` call
the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from unihetero_jax.config import generating_loss, visual_tokens
from unihetero_jax.errors import UsageError
from unihetero_jax.generate.compiled_programs import Program, absent_towers, programs
from unihetero_jax.generate.decode import Decoded, Ids, Numbers, Plan
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
from unihetero_jax.generate.results import GeneratedImages, Scored, TeacherForced
from unihetero_jax.generate.sampling_options import Sampling, validate
from unihetero_jax.generate.stopping import decode_until, ends_at
from unihetero_jax.model.trained_model import Trained
from unihetero_jax.model.vision import BOTH, INPUT, TARGET
from unihetero_jax.parallel.mesh import place, sharding

ANSWER_LIMIT = 16
PHRASE_LIMIT = 24

# Prompts are padded to a multiple of this many slots: each length is a program to compile, each slot time to compute.
_BUCKET = 16
_WORD = 0xFFFFFFFF

Images = UInt8[np.ndarray, "n H W 3"]


class Predictor:
    """Predict functions of a trained model; every function may be called with any number of requests.

    Requests go through the model ``config.evaluate.batch_size`` at a time, fewer when there are fewer, split over the
    devices of the model's mesh. The prediction for one depends on no other. Programs are compiled once per shape and
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
        per_input, per_target = visual_tokens(trained.config)
        role = BOTH if trained.config.data.input_role == "both" else INPUT
        self._layout = Layout(coder, {INPUT: per_input, TARGET: per_target, BOTH: per_target}, role)

    @property
    def generates_images(self) -> bool:
        """Whether the model has a head that predicts visual tokens."""
        return not self.missing_head

    @property
    def missing_head(self) -> str:
        """The setting that would give the model a head that predicts visual tokens; empty where there is one."""
        generation = self.config.model.generation
        if generating_loss(self.config, generation) is not None:
            return ""
        return f"config.losses.{'pixel' if generation == 'latents' else generation}.weight"

    @property
    def has_pixels(self) -> bool:
        """Whether predictions become pixels: those of codes and latents do, embeddings do with a pixel head."""
        return self.config.model.generation != "semantic" or generating_loss(self.config, "latents") is not None

    def prompt(self, text: str, image: np.ndarray | None = None) -> Prompt:
        """A user's turn and the opening of the model's, laid out as in training: the image, if any, before the text.

        Args:
          text: what the user says.
          image: [H, W, 3] uint8, of the model's size.
        """
        return self._layout.request(_asked(text, image))

    def slots(self, request: Request) -> int:
        """The number of slots that a request takes."""
        return len(self._layout.request(request))

    def generate(self, requests: Sequence[Request | str], sampling: Sampling | None = None) -> list[Generated]:
        """Answer each request with texts and images.

        The same request gets the same answer under the same sampling, in any batch.

        Args:
          requests: n requests, images [H, W, 3] uint8 of the model's size; a string is a user's only turn.
          sampling: how, and how much; the likeliest text and at most one image by default.

        Raises:
          UsageError: a setting that cannot work; an unknown speaker; a part that is neither text nor an image of the
            model's size; an image required of a model without a head for it.
        """
        sampling = Sampling() if sampling is None else sampling
        validate(sampling)
        if sampling.require_image and not self.generates_images:
            raise UsageError(
                f"sampling.require_image=True: the model has no head that generates images ({self.missing_head} is 0)"
            )
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
        without = [self._layout.request(request, words=False) for request in asked] if doubled else None
        return self._generate([self._layout.request(request) for request in asked], sampling, without, seeds)

    def answer(
        self, images: Images, questions: Sequence[str], limit: int = ANSWER_LIMIT, stop: Sequence[str] = ()
    ) -> list[str]:
        """Answer a question about each image.

        Args:
          images: one per question, of the model's size.
          questions: n texts.
          limit: most tokens per answer.
          stop: texts; an answer is cut before the first of them.

        Raises:
          UsageError: ``stop`` is one text, or has an empty one.
        """
        prompts = [self.prompt(text, image) for text, image in zip(questions, images, strict=True)]
        return self._texts(prompts, limit, stop)

    def score(self, requests: Sequence[Request | str], answers: Sequence[str]) -> list[Scored]:
        """Score each answer to its request, ended as in training: for questions with choices.

        Args:
          requests: n requests, as for ``generate``.
          answers: one text per request.

        Raises:
          UsageError: as ``generate`` for the requests.
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
            # One slot more than the longest answer: the slot before the first of its tokens predicts it.
            weight = (np.arange(scored) >= scored - own[:, None]).astype(np.float32)
            batch = self._batch(prompts[part], rows, prompts, least=scored + 1)
            scores = self._programs["score"](self._params, batch, place(weight, sharding(self._mesh, "batch")))
            likelihoods, greedy = (np.asarray(scores[name]).tolist() for name in ("log_likelihood", "greedy"))
            # The rows behind the answers are padding.
            found += map(Scored, likelihoods, lengths[part], greedy)
        return found

    def continue_text(self, texts: Sequence[str], limit: int = PHRASE_LIMIT, stop: Sequence[str] = ()) -> list[str]:
        """Continue each text without turns: the model as a plain language model; ``stop`` as above."""
        coder = self.tokenizer
        prompts = [self._layout.parts([coder.begin_id, *coder.encode(text)], []) for text in texts]
        return self._texts(prompts, limit, stop)

    def generate_images(
        self, requests: Sequence[str], images: Images | None = None, limit: int = PHRASE_LIMIT
    ) -> GeneratedImages:
        """Generate an image for each request: the model's text, then the image, one visual token after another.

        Args:
          requests: n texts.
          images: an input image for each request, of the model's size; none by default.
          limit: most tokens of the text.

        Raises:
          ValueError: the model has no head that predicts visual tokens.
        """
        self._check_head()
        inputs = [None] * len(requests) if images is None else list(images)
        prompts = [self.prompt(text, image) for text, image in zip(requests, inputs, strict=True)]
        answers = self._generate(prompts, Sampling(max_tokens=limit, require_image=True), ends_with_image=True)
        pictures = [answer.pictures[0] for answer in answers]
        pixels = [picture.pixels for picture in pictures if picture.pixels is not None]
        predicted = np.stack([picture.predicted for picture in pictures])
        return GeneratedImages(
            [answer.text for answer in answers],
            np.asarray(self._programs["vectors"](self._params, predicted)),
            np.stack(pixels) if pixels else None,
            np.asarray([picture.forced for picture in pictures]),
        )

    def _check_head(self) -> None:
        if not self.generates_images:
            raise ValueError(f"the model has no head that generates images: {self.missing_head} is 0")

    def teacher_forced(self, requests: Sequence[str], phrases: Sequence[str], images: Images) -> TeacherForced:
        """Predict each visual token of images from the true ones before it.

        Args:
          requests: n texts of the user.
          phrases: n texts of the model before the image.
          images: the true images, of the model's size.

        Raises:
          ValueError: the model has no head that predicts visual tokens.
        """
        self._check_head()
        coder = self.tokenizer
        prompts = []
        for request, phrase, image in zip(requests, phrases, images, strict=True):
            parts = [coder.begin_id, coder.user_id, request, coder.assistant_id, phrase, image]
            # The row ends with the last visual token, so that these are the last N slots whatever came before.
            prompts.append(self._layout.parts(parts, [TARGET]).without_last())
        found = self._run(self._programs["teacher_forced"], prompts)
        return TeacherForced(found["embeddings"], found.get("images"))

    def reconstruct(self, images: Images) -> Images | None:
        """Images as they would be if their tokens were predicted without an error; None where nothing makes pixels.

        The pixels come from the codes, latents or raw patches of the true images.
        """
        if not (self.generates_images and self.has_pixels):
            return None
        return self._run(self._programs["reconstruct"], self._targets(images))["images"]

    def embed(self, images: Images) -> Float[np.ndarray, "n N F"]:
        """What is to be predicted of images: true embeddings, vectors of codes, or latents."""
        return self._run(self._programs["embed"], self._targets(images))["embeddings"]

    def states(self, images: Images) -> dict[str, Float[np.ndarray, "n S"]]:
        """Vectors of input images at their slots, pooled by ``pooling.pooled``.

        ``adapter``: their embeddings. ``layer_01``, …: the residual stream after each layer of the decoder.
        """
        coder = self.tokenizer
        prompts = [
            # The row ends with the last visual token.
            self._layout.parts([coder.begin_id, coder.user_id, image], [self._layout.input_role]).without_last()
            for image in images
        ]
        return self._run(self._programs["states"], prompts)

    def text(self, batch: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Σ cross-entropy (nats) of the text tokens of packed rows, and their number.

        Args:
          batch: as for ``held_out``.
        """
        found = self._on_rows("text", batch)
        return float(found["sum"]), float(found["weight"])

    def held_out(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Sum and weight of each loss over packed rows: see ``evaluate.losses``.

        Args:
          batch: a packed batch; rows without weight are added, so that the devices divide it.
        """
        return self._on_rows("held_out", batch)

    def _on_rows(self, program: str, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A program's results for packed rows, padded so that the devices divide them."""
        rows = self._rows(len(batch["tokens"]))
        padded = {
            name: np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()
        }
        found = self._programs[program](self._params, self._place(padded))
        return {name: np.asarray(array) for name, array in found.items()}

    def _targets(self, images: Images) -> list[Prompt]:
        """Rows without text that hold one target image each."""
        empty = self._layout.parts([self.tokenizer.begin_id], [])
        return [replace(empty, images=(image,), roles=(TARGET,)) for image in images]

    @property
    def _guides_pixels(self) -> bool:
        """Whether a diffusion head turns embeddings into pixels, and has a null condition."""
        pixel = generating_loss(self.config, "latents")
        return self.config.model.generation == "semantic" and pixel is not None and pixel.null_condition

    def _guidance(self, sampling: Sampling) -> str:
        """How images are guided: see ``Plan``."""
        if not self.generates_images or not sampling.max_images:
            return "none"
        pixel, latents = generating_loss(self.config, "latents"), self.config.model.generation == "latents"
        if sampling.guidance is None:
            return "configured" if latents else "none"
        if sampling.guidance == 1:
            return "none"
        own = latents and pixel is not None and pixel.null_condition
        return "head" if own else "rows"

    def _texts(self, prompts: Sequence[Prompt], limit: int, stop: Sequence[str]) -> list[str]:
        sampling = Sampling(max_tokens=limit, max_images=0, stop_texts=stop)
        validate(sampling)
        return [answer.text for answer in self._generate(prompts, sampling)]

    def _generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        without: Sequence[Prompt] | None = None,
        seeds: Sequence[int] | None = None,
        ends_with_image: bool = False,
    ) -> list[Generated]:
        """Generate for prompts, batch after batch; guided away from the predictions for prompts ``without`` text."""
        plan = Plan(
            sampling.max_tokens,
            sampling.max_images if self.generates_images else 0,
            sampling.require_image,
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
            pairs = [prompts[part]] if without is None else [prompts[part], without[part]]
            ordered = [prompt for pair in zip(*pairs, strict=True) for prompt in pair]
            batch = self._batch(ordered, rows * plan.rows_per_request, prompts)
            if sampling.stop_texts:
                enough = ends_at(sampling.stop_texts, coder, self._layout.tokens[TARGET])
                decoded = decode_until(self._programs, self._params, batch, requests, *arguments, len(words), enough)
            else:
                decoded = self._programs["generate"](self._params, batch, requests, *arguments)
            generated += self._assemble(decoded, len(words), requests, sampling)
        return generated

    def _assemble(self, decoded: Decoded, count: int, requests: np.ndarray, sampling: Sampling) -> list[Generated]:
        """What was decoded for the first ``count`` requests of a batch as texts and pictures."""
        coder = self.tokenizer
        ids, length, stop, images = (
            np.asarray(array)[:count] for array in (decoded.ids, decoded.length, decoded.stop, decoded.images)
        )
        pictures = self._pictures(decoded, images, requests, sampling)
        generated = []
        for row in range(count):
            segments: list[str | Picture] = []
            for run in pieces(ids[row, : length[row]].tolist(), coder.image_start_id, self._layout.tokens[TARGET]):
                segments.append(next(pictures) if run is None else coder.decode(run))
            kept, found = cut(segments, sampling.stop_texts)
            ends_with_image = images[row] > 0 and ids[row, length[row] - 1] == coder.image_pad_id
            generated.append(Generated(kept, "stop" if found else self._reason(int(stop[row]), ends_with_image)))
        return generated

    def _pictures(
        self, decoded: Decoded, images: np.ndarray, requests: np.ndarray, sampling: Sampling
    ) -> Iterator[Picture]:
        """The pictures of a batch, request after request; ``images``: how many each request has."""
        index = [(row, image) for row, count in enumerate(images) for image in range(count)]
        if not index:
            return
        predicted, forced = np.asarray(decoded.predicted), np.asarray(decoded.forced)
        pixels: Sequence[np.ndarray | None] = [None] * len(index)
        if self.has_pixels:
            # As many as there are, not as many as could be: this is where a tower's decoder or a diffusion head runs.
            padded = np.asarray([*index, *[index[-1]] * (self._rows(len(index)) - len(index))], np.int32)
            guided = sampling.pixel_guidance is not None and self._guides_pixels
            scale = np.float32(sampling.pixel_guidance) if guided else None
            arguments = decoded, padded, requests, np.uint32(sampling.seed), scale
            pixels = list(np.asarray(self._programs["images"](self._params, *arguments)))
        for where, image in zip(index, pixels, strict=False):
            yield Picture(predicted[where], image, bool(forced[where]))

    def _reason(self, stop: int, ends_with_image: bool) -> Literal["end", "stop", "image", "complete", "length"]:
        if stop == self.tokenizer.image_start_id:
            return "image"
        if stop < 0:
            return "complete" if ends_with_image else "length"
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
        """Some prompts on the devices, in arrays that fit every prompt of ``like``, and ``least`` slots."""
        slots = -(-max(least, *map(len, like)) // _BUCKET) * _BUCKET
        images = max(1, *(len(prompt.images) for prompt in like))
        batch = left_pad(prompts, rows, slots, images, self._image_size)
        for name in self._absent:
            section, key = getattr(self.config.model, name), f"config.model.{name}"
            if any(prompt.images for prompt in like):
                raise UsageError(
                    f"{key}.cached=True: the model was trained on stored features and has no tower: expected requests "
                    "of text alone"
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
            arrays = program(self._params, self._batch(prompts[part], rows, prompts), words)
            found.append({name: np.asarray(array)[: len(prompts[part])] for name, array in arrays.items()})
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _asked(text: str, image: np.ndarray | None) -> Request:
    return Request.of(text) if image is None else Request.of(image, text)
