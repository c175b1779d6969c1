"""Predict functions of a trained model: text in, pictures in, text out, pictures out; NumPy on both sides.

n requests, N visual tokens an image, F size of a semantic prediction, H × W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from unihetero_jax import objectives
from unihetero_jax.checkpoint import Trained
from unihetero_jax.config import Config, visual_tokens
from unihetero_jax.generate.decode import Prompt, imagine, left_pad, prefill, write_text
from unihetero_jax.model.build import Params, define
from unihetero_jax.model.unified import UnifiedModel, at_slots, visual_slots
from unihetero_jax.model.vision import INPUT, TARGET, Batch
from unihetero_jax.parallel.mesh import place, sharding
from unihetero_jax.tokenizer import Tokenizer

ANSWER_LIMIT = 16
PHRASE_LIMIT = 24

# Prompts are padded to a multiple of this many slots: each length is a program to compile, each slot time to compute.
_BUCKET = 16

Images = UInt8[np.ndarray, "n H W 3"]


@dataclass(frozen=True)
class Reply:
    """Text, and whether the model ended it with the marker that begins a picture."""

    text: str
    wants_picture: bool


@dataclass(frozen=True)
class Drawn:
    """What the model made of requests.

    ``text``: the words before each picture. ``embeddings`` [n, N, F] float32: the semantic predictions, each made after
    the ones before it. ``images`` [n, H, W, 3] uint8; None without a pixel head. ``forced`` [n] bool: the model did not
    ask to draw within the limit; the marker was put there for it.
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
        self.tokenizer = trained.tokenizer
        self._params = trained.params
        self._mesh = trained.mesh
        self._programs = _programs(trained.config, trained.tokenizer.vocabulary_size, trained.mesh)
        self._image_size = trained.config.data.image_size
        self._shown, self._drawn = visual_tokens(trained.config)
        self._stops = np.asarray([trained.tokenizer.end_id, trained.tokenizer.image_start_id], np.int32)

    @property
    def draws(self) -> bool:
        """Whether the model has a semantic head, without which it cannot make a picture's embeddings."""
        return bool(self.config.objectives.semantic.weight)

    @property
    def has_pixels(self) -> bool:
        """Whether the model has a pixel head, without which embeddings do not become a picture."""
        return bool(self.config.objectives.pixel.weight)

    def prompt(self, text: str, image: np.ndarray | None = None) -> Prompt:
        """A user's turn and the opening of the model's, laid out as in training: the image, if any, before the text.

        Args:
          text: what the user says.
          image: [H, W, 3] uint8, of the model's size.
        """
        coder = self.tokenizer
        picture = [] if image is None else self._image_slots(self._shown)
        tokens = [coder.begin_id, coder.user_id, *picture, *coder.encode(text.strip()), coder.assistant_id]
        return _prompt(tokens, coder, image)

    def answer(self, images: Images, questions: Sequence[str], limit: int = ANSWER_LIMIT) -> list[str]:
        """The answer to a question about each image.

        Args:
          images: one a question, of the model's size.
          questions: n of them.
          limit: most tokens an answer.
        """
        return [reply.text for reply in self.reply(images, questions, limit)]

    def reply(self, images: Images | None, texts: Sequence[str], limit: int = ANSWER_LIMIT) -> list[Reply]:
        """Text for each user's turn, with or without images, up to where the model stops or would draw."""
        pictures = [None] * len(texts) if images is None else list(images)
        return self._write([self.prompt(text, image) for text, image in zip(texts, pictures, strict=True)], limit)

    def continue_text(self, texts: Sequence[str], limit: int = PHRASE_LIMIT) -> list[str]:
        """What follows each text when nobody speaks in turn: the model as a plain language model."""
        coder = self.tokenizer
        prompts = [_prompt([coder.begin_id, *coder.encode(text)], coder, None) for text in texts]
        return [reply.text for reply in self._write(prompts, limit)]

    def draw(self, requests: Sequence[str], images: Images | None = None, limit: int = PHRASE_LIMIT) -> Drawn:
        """A picture for each request: the model writes its phrase, then the image, one embedding after another.

        Args:
          requests: n of them.
          images: a picture to each request, of the model's size; none by default.
          limit: most tokens of the phrase.

        Raises:
          ValueError: the model has no semantic head.
        """
        if not self.draws:
            raise ValueError("the model has no semantic head: it cannot draw")
        pictures = [None] * len(requests) if images is None else list(images)
        prompts = [self.prompt(text, image) for text, image in zip(requests, pictures, strict=True)]
        marker = np.int32(self.tokenizer.image_start_id)
        made = self._run(self._programs["draw"], prompts, limit, self._stops, marker)
        text = self._texts(made["tokens"], made["length"])
        return Drawn(text, made["embeddings"], made.get("images"), made["stop"] != self.tokenizer.image_start_id)

    def teach(self, requests: Sequence[str], phrases: Sequence[str], images: Images) -> Taught:
        """What the model predicts for each visual token when it is shown the ones before it.

        Args:
          requests: what the user says.
          phrases: what the model says before the picture.
          images: the true pictures, of the model's size.
        """
        if not self.draws:
            raise ValueError("the model has no semantic head: it predicts no embeddings")
        coder = self.tokenizer
        prompts = []
        for request, phrase, image in zip(requests, phrases, images, strict=True):
            turn = [coder.begin_id, coder.user_id, *coder.encode(request.strip()), coder.assistant_id]
            # The row ends with the last visual token, so that these are the last N slots whatever came before.
            tokens = [*turn, *coder.encode(phrase.strip()), *self._image_slots(self._drawn)[:-1]]
            prompts.append(_prompt(tokens, coder, image, TARGET))
        made = self._run(self._programs["teach"], prompts)
        return Taught(made["embeddings"], made.get("images"))

    def embed(self, images: Images) -> Float[np.ndarray, "n N F"]:
        """The true semantic embeddings of images: what ``draw`` and ``teach`` are to predict."""
        empty = _prompt([self.tokenizer.begin_id], self.tokenizer, None)
        return self._run(self._programs["embed"], [replace(empty, image=image, role=TARGET) for image in images])[
            "embeddings"
        ]

    def held_out(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Teacher-forced sums over packed rows: see ``evaluate.losses``, which takes this function.

        Args:
          batch: a packed batch; rows are added, with no weight, so that the devices divide it.
        """
        rows = self._rows(len(batch["tokens"]))
        padded = {
            name: np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()
        }
        made = self._programs["held_out"](self._params, self._place(padded))
        return {name: np.asarray(array) for name, array in made.items()}

    def _image_slots(self, count: int) -> list[int]:
        coder = self.tokenizer
        return [coder.image_start_id, *[coder.image_pad_id] * count, coder.image_end_id]

    def _write(self, prompts: Sequence[Prompt], limit: int) -> list[Reply]:
        made = self._run(self._programs["write"], prompts, limit, self._stops)
        wants = made["stop"] == self.tokenizer.image_start_id
        texts = self._texts(made["tokens"], made["length"])
        return [Reply(text, bool(want)) for text, want in zip(texts, wants, strict=True)]

    def _texts(self, tokens: np.ndarray, length: np.ndarray) -> list[str]:
        rows = zip(tokens, length, strict=True)
        return [self.tokenizer.decode(row[:count].tolist()).strip() for row, count in rows]

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

    def _run(self, program: Callable[..., Any], prompts: Sequence[Prompt], *arguments: Any) -> dict[str, np.ndarray]:
        """A program's results for all prompts, batch after batch, rows of padding cut off."""
        if not prompts:
            raise ValueError("expected at least one request")
        slots = -(-max(map(len, prompts)) // _BUCKET) * _BUCKET
        size = self.config.evaluate.batch_size
        rows = self._rows(min(len(prompts), size))
        parts: list[dict[str, np.ndarray]] = []
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            batch = self._place(left_pad(part, rows, slots, self._image_size))
            made = program(self._params, batch, *arguments)
            parts.append({name: np.asarray(array)[: len(part)] for name, array in made.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _prompt(tokens: Sequence[int], coder: Tokenizer, image: np.ndarray | None, role: int = INPUT) -> Prompt:
    ids = np.asarray(tokens, np.int32)
    visual = ids == coder.image_pad_id
    return Prompt(ids, np.where(visual, np.cumsum(visual) - 1, -1).astype(np.int32), image, role)


@functools.lru_cache(maxsize=4)
def _programs(config: Config, vocabulary: int, mesh: Mesh) -> dict[str, Callable[..., Any]]:
    """The compiled functions of (parameters, batch, …) of a config's model."""
    definition = define(config, vocabulary)
    precision = "highest" if config.model.decoder.dtype == "float32" else None
    # There is no moving-average teacher here: predictions are compared with what the model itself sees.
    semantic = replace(config.objectives.semantic, target_gradient="stop")
    settings = replace(config.objectives, semantic=semantic)

    def program(function: Callable[..., dict[str, jax.Array]], **options: Any) -> Callable[..., Any]:
        def run(params: Params, *arguments: Any) -> dict[str, jax.Array]:
            with jax.default_matmul_precision(precision):
                return function(definition.bind(params), *arguments)

        return jax.jit(run, **options)

    def pictures(model: UnifiedModel, semantics: jax.Array, hidden: jax.Array) -> dict[str, jax.Array]:
        made = {"embeddings": semantics}
        if model.pixel_head is not None:
            made["images"] = model.decode_latents(model.sample_latents(hidden, jax.random.key(0)))
        return made

    def write(model: UnifiedModel, batch: Batch, limit: int, stops: jax.Array) -> dict[str, jax.Array]:
        context = prefill(model, batch, limit, mesh)
        return write_text(model, context, batch["tokens"].shape[1], limit, stops, mesh)[0]._asdict()

    def draw(
        model: UnifiedModel, batch: Batch, limit: int, stops: jax.Array, marker: jax.Array
    ) -> dict[str, jax.Array]:
        slots = batch["tokens"].shape[1]
        context = prefill(model, batch, limit + 1 + model.target_tokens, mesh)
        written, context = write_text(model, context, slots, limit, stops, mesh)
        made = imagine(model, context, slots + limit, marker, mesh)
        return {**written._asdict(), **pictures(model, made.semantics, made.hidden)}

    def teach(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        hidden_BTD = model.hidden(batch, model.see(batch, mesh=mesh), mesh=mesh)
        hidden_BND = hidden_BTD[:, -model.target_tokens - 1 : -1]
        return pictures(model, model.predict_semantics(hidden_BND), hidden_BND)

    def embed(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        return {"embeddings": objectives.semantic_target(semantic, model.see(batch, mesh=mesh), None)[:, 0]}

    def held_out(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        sums, _ = objectives.loss_sums(settings, model, batch, mesh=mesh)
        totals = objectives.weights(settings, batch)
        made = {f"{name}_sum": sums[name] for name in sums} | {f"{name}_weight": totals[name] for name in sums}
        if semantic.weight:
            made |= cosines(model, batch)
        return made

    def cosines(model: UnifiedModel, batch: Batch) -> dict[str, jax.Array]:
        visual = model.see(batch, mesh=mesh)
        slots = visual_slots(batch, model.target_tokens)
        hidden_BMD = at_slots(model.hidden(batch, visual, mesh=mesh), slots.predictor)
        target = objectives.semantic_target(semantic, visual, None)
        rows, images, tokens, size = target.shape
        near_BM = objectives.cosine(model.predict_semantics(hidden_BMD), target.reshape(rows, images * tokens, size))
        near_BKN = (near_BM * slots.weight).reshape(rows, images, tokens)
        weight_BKN = slots.weight.reshape(rows, images, tokens)
        return {"cosine_sum": jnp.sum(near_BKN, axis=(0, 1)), "cosine_weight": jnp.sum(weight_BKN, axis=(0, 1))}

    return {
        "write": program(write, static_argnums=2),
        "draw": program(draw, static_argnums=2),
        "teach": program(teach),
        "embed": program(embed),
        "held_out": program(held_out),
    }
