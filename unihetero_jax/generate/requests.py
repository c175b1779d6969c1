"""Requests and answers, as text and pictures; and how a request is laid out in the slots of a row.

B rows, T slots, K images per row, n slots of one request, N visual tokens per image, F width of a predicted visual
token.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from unihetero_jax.errors import UsageError
from unihetero_jax.model.vision import INPUT, TARGET
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

PromptBatch = dict[str, np.ndarray]
Part = str | np.ndarray


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
      speaker: ``human`` or ``gpt``.
      parts: texts and pictures ([H, W, 3] uint8), in order.
    """

    speaker: Literal["human", "gpt"]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Request:
    """A conversation that the model continues.

    Its random numbers depend on its content, ``seed`` and the seed of the sampling, so the same request gets the same
    answer in any batch. Give copies of a request different seeds to get different answers.

    Attributes:
      turns: of the conversation.
      seed: of this request.
    """

    turns: tuple[Turn, ...]
    seed: int = 0

    @classmethod
    def of(cls, *parts: Part, seed: int = 0) -> Request:
        """A request of one turn: ``Request.of(image, "What time is it?")``."""
        return cls((Turn("human", parts),), seed)


def check(request: Request, image_size: int) -> None:
    """Raises ``UsageError`` for an unknown speaker, and for what is neither text nor an image of the model's size."""
    expected = (image_size, image_size, 3)
    for turn in request.turns:
        if turn.speaker not in ("human", "gpt"):
            raise UsageError(f"a turn is from {turn.speaker!r}: expected 'human' or 'gpt'")
        for part in turn.parts:
            if not isinstance(part, str | np.ndarray):
                raise UsageError(f"a {type(part).__name__} in a request: expected a str, or an image as a NumPy array")
            if not isinstance(part, str) and (part.shape, part.dtype) != (expected, np.uint8):
                raise UsageError(
                    f"an image of shape {part.shape}, {part.dtype}, in a request: expected {expected}, uint8"
                )


@dataclass(frozen=True)
class Picture:
    """A generated picture.

    Attributes:
      predicted: what was predicted token after token: embeddings [N, F] float32, codes [N] int32, or latents [N, F]
        float32.
      pixels: [H, W, 3] uint8; None when the model has nothing that turns predictions into pixels.
      forced: the model did not begin the picture by itself.
    """

    predicted: np.ndarray
    pixels: np.ndarray | None
    forced: bool


@dataclass(frozen=True)
class Generated:
    """The answer to a request.

    Attributes:
      segments: texts and pictures in order.
      stop: why the answer ended: ``end``, its end of turn; ``stop``, a stop token or text; ``image``, it would have
        begun one more picture than allowed; ``complete``, nothing was requested after the last picture; ``length``, the
        limit of tokens.
    """

    segments: tuple[str | Picture, ...]
    stop: Literal["end", "stop", "image", "complete", "length"]

    @property
    def text(self) -> str:
        """Its texts, a space between them."""
        return " ".join(segment for segment in self.segments if isinstance(segment, str))

    @property
    def pictures(self) -> list[Picture]:
        """Its pictures."""
        return [segment for segment in self.segments if isinstance(segment, Picture)]


@dataclass(frozen=True)
class Prompt:
    """One row of input.

    Attributes:
      tokens: [n] int32, as in a packed batch.
      image: [n] int32, as in a packed batch; −1 on text.
      patch: [n] int32, as in a packed batch; −1 on text.
      images: each [H, W, 3] uint8.
      roles: of each image.
    """

    tokens: np.ndarray
    image: np.ndarray
    patch: np.ndarray
    images: tuple[np.ndarray, ...]
    roles: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def without_last(self) -> Prompt:
        """All but the last slot."""
        return replace(self, tokens=self.tokens[:-1], image=self.image[:-1], patch=self.patch[:-1])

    def followed_by(self, ids: Sequence[int]) -> Prompt:
        """With slots of text behind it."""
        text = np.full(len(ids), -1, np.int32)
        slots = [np.concatenate(pair) for pair in ((self.tokens, ids), (self.image, text), (self.patch, text))]
        return replace(self, tokens=slots[0].astype(np.int32), image=slots[1], patch=slots[2])

    @property
    def digest(self) -> int:
        """A checksum of 32 bits."""
        arrays = (self.tokens, self.image, *self.images)
        return zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))


class Layout:
    """Puts requests into slots, as in training.

    Args:
      tokenizer: of the model.
      tokens: visual tokens of an image of each role, as in a packed batch.
      input_role: the role of the user's images; the model's own are targets.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: Mapping[int, int], input_role: int = INPUT):
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.input_role = input_role

    def request(self, request: Request, words: bool = True) -> Prompt:
        """A conversation and the opening of the model's turn; without ``words``, the user's text is left out."""
        coder = self.tokenizer
        parts: list[int | Part] = [coder.begin_id]
        roles: list[int] = []
        for turn in request.turns:
            answer = turn.speaker == "gpt"
            parts.append(coder.assistant_id if answer else coder.user_id)
            for part in turn.parts:
                if isinstance(part, str):
                    parts += [part] if words or answer else []
                else:
                    parts.append(part)
                    roles.append(TARGET if answer else self.input_role)
            parts += [coder.end_id] if answer else []
        return self.parts([*parts, coder.assistant_id], roles)

    def parts(self, parts: Sequence[int | Part], roles: Sequence[int]) -> Prompt:
        """Ids, texts and images one after another; ``roles``: of the images."""
        coder = self.tokenizer
        tokens: list[int] = []
        image: list[int] = []
        patch: list[int] = []
        images: list[np.ndarray] = []
        for part in parts:
            if isinstance(part, np.ndarray):
                count = self.tokens[roles[len(images)]]
                tokens += [coder.image_start_id, *[coder.image_pad_id] * count, coder.image_end_id]
                image += [-1, *[len(images)] * count, -1]
                patch += [-1, *range(count), -1]
                images.append(part)
            else:
                ids = coder.encode(part.strip()) if isinstance(part, str) else [part]
                tokens += ids
                image += [-1] * len(ids)
                patch += [-1] * len(ids)
        slots = [np.asarray(column, np.int32) for column in (tokens, image, patch)]
        return Prompt(slots[0], slots[1], slots[2], tuple(images), tuple(roles))


def left_pad(prompts: Sequence[Prompt], rows: int, slots: int, images: int, image_size: int) -> PromptBatch:
    """Prompts as the arrays of a batch, each at the right end of its row; remaining rows repeat the last prompt.

    Args:
      prompts: at least one, at most ``rows``.
      rows: B.
      slots: T, at least the length of the longest prompt.
      images: K, at least as many as the prompt with most images has.
      image_size: pixels per side.

    Returns:
      ``tokens``, ``segment`` (0 on padding), ``position``, ``image``, ``patch`` [B, T] int32, ``images``
      [B, K, H, W, 3] uint8 and ``role`` [B, K] int8, as in a packed batch.
    """
    batch: PromptBatch = {
        "tokens": np.zeros((rows, slots), np.int32),
        "segment": np.zeros((rows, slots), np.int32),
        "position": np.zeros((rows, slots), np.int32),
        "image": np.full((rows, slots), -1, np.int32),
        "patch": np.full((rows, slots), -1, np.int32),
        "images": np.zeros((rows, images, image_size, image_size, 3), np.uint8),
        "role": np.zeros((rows, images), np.int8),
    }
    for row in range(rows):
        prompt = prompts[min(row, len(prompts) - 1)]
        here = np.s_[row, slots - len(prompt) :]
        batch["tokens"][here] = prompt.tokens
        batch["segment"][here] = 1
        batch["position"][here] = np.arange(len(prompt))
        batch["image"][here] = prompt.image
        batch["patch"][here] = prompt.patch
        for number, (picture, role) in enumerate(zip(prompt.images, prompt.roles, strict=True)):
            batch["images"][row, number] = picture
            batch["role"][row, number] = role
    return batch


def cut(segments: Sequence[str | Picture], stops: Sequence[str]) -> tuple[tuple[str | Picture, ...], bool]:
    """The segments before the first stop text, which lies within one of them; and whether there is one.

    Texts are stripped, and empty ones left out, after they are cut: a stop text may be a line's end.
    """
    kept: list[str | Picture] = []
    for segment in segments:
        if not isinstance(segment, str):
            kept.append(segment)
            continue
        found = [segment.find(stop) for stop in stops if stop in segment]
        if text := segment[: min(found, default=None)].strip():
            kept.append(text)
        if found:
            return tuple(kept), True
    return tuple(kept), False


def pieces(ids: Sequence[int], marker: int, tokens: int) -> Iterator[list[int] | None]:
    """Runs of text ids, and None for each picture: the marker, its visual slots and, unless it ended there, its end."""
    text: list[int] = []
    place = 0
    while place < len(ids):
        if ids[place] == marker:
            if text:
                yield text
            text = []
            yield None
            place += tokens + 2
        else:
            text.append(ids[place])
            place += 1
    if text:
        yield text
