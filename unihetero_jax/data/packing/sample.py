"""Sample: interleaved text and images, each an input, a target, or both; and how it is laid out in slots.

Shape letters: n slots of one sample.
"""

from __future__ import annotations

import enum
import functools
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from unihetero_jax.data.records.images import CENTER, MAX_PIXELS, Fit, decode_into
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.text import MAX_CHARACTERS, clean_text, read_text
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

IMAGE_TOKEN = "<image>"
# Where a record has the features of its images that were computed before (``data.records.features``): arrays by tower.
FEATURES = "tower_features"
# Where it says that one of its images could not be decoded when they were.
UNDECODABLE = "undecodable"
# Where a record says how its pictures become square, if not by stretching them.
TRANSFORM = "transform"


class Transform(NamedTuple):
    """How a picture becomes a square one.

    ``fit``, ``crop``, ``share`` and ``flip`` are those of ``data.records.images.decode``.
    """

    fit: Fit = "stretch"
    crop: tuple[float, float] = CENTER
    share: float = 1.0
    flip: bool = False


STRETCHED = Transform()


class Role(enum.IntEnum):
    """What an image of a row is for, as stored in a packed batch."""

    ABSENT = 0
    INPUT = 1
    TARGET = 2
    BOTH = 3


_PREDICTED = frozenset((Role.TARGET, Role.BOTH))
# What the arrays of a row hold where there is nothing, and of which type they are.
_EMPTY = {
    "tokens": (0, np.int32),
    "image": (-1, np.int32),
    "patch": (-1, np.int32),
    "text_weight": (0.0, np.float32),
    "visual_weight": (0.0, np.float32),
}


# Tuples, and a dataclass with slots: those of a frozen dataclass take three times as long to make.
class TextSegment(NamedTuple):
    """Token ids, and whether they are learned (a loss on each) or only read."""

    tokens: Sequence[int]
    target: bool


class ImageSegment(NamedTuple):
    """One encoded image (PNG, JPEG, …) and its role. ``marked_target``: its markers are text targets."""

    data: bytes
    role: Role
    marked_target: bool


class Sample(NamedTuple):
    """Segments in reading order."""

    segments: tuple[TextSegment | ImageSegment, ...]


@dataclass(slots=True)
class Slots:
    """A sample laid out one slot after another, images decoded.

    ``tokens`` [n] int32, ``image`` and ``patch`` [n] int32 (−1 on text), ``text_weight`` and ``visual_weight`` [n]
    float32, ``images`` a list of [H, W, 3] uint8, ``roles`` the role of each. ``features``: by tower, [images, N, F],
    those that were computed before.
    """

    tokens: np.ndarray
    image: np.ndarray
    patch: np.ndarray
    text_weight: np.ndarray
    visual_weight: np.ndarray
    images: tuple[np.ndarray, ...]
    roles: tuple[Role, ...]
    features: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def write(self, row: Mapping[str, np.ndarray], start: int, first_image: int) -> None:
        """Lays the sample out in a row.

        Args:
          row: arrays [T] by name, as a packed batch has them; those of images are −1, and weights 0.
          start: its first slot there.
          first_image: the number that its first image has there.
        """
        here = slice(start, start + len(self))
        for name in ("tokens", "patch", "text_weight", "visual_weight"):
            row[name][here] = getattr(self, name)
        row["image"][here] = np.where(self.image < 0, -1, self.image + first_image)


def conversation_sample(
    conversations: Sequence[Mapping[str, str]],
    images: Sequence[bytes],
    tokenizer: Tokenizer,
    input_role: Role = Role.INPUT,
    target_role: Role = Role.TARGET,
    max_characters: int = MAX_CHARACTERS,
) -> Sample:
    """A LLaVA-style conversation as a sample; ``<image>`` may stand anywhere in a turn, any number of times.

    Human turns are read; gpt turns, their end token and the image markers in them are learned. An image in a human turn
    is an input, one in a gpt turn a target. An empty answer is read: nobody should learn to say nothing.

    Raises:
      InvalidRecord: an unknown speaker, another number of ``<image>`` than of images, or more than ``max_characters``
        in all turns together.
    """
    turns = [(turn["from"], turn["value"]) for turn in conversations]
    return _turns_sample(turns, images, tokenizer, input_role, target_role, max_characters)


def _turns_sample(
    turns: Sequence[tuple[str, str]],
    images: Sequence[bytes],
    tokenizer: Tokenizer,
    input_role: Role,
    target_role: Role = Role.TARGET,
    max_characters: int = MAX_CHARACTERS,
) -> Sample:
    if (characters := sum([len(value) + 1 for _, value in turns])) > max_characters:
        raise InvalidRecord("too_long", f"{characters} characters; expected at most {max_characters}")
    segments: list[TextSegment | ImageSegment] = [TextSegment((tokenizer.begin_id,), False)]
    used = 0
    for speaker, value in turns:
        if speaker not in ("human", "gpt"):
            raise InvalidRecord("invalid", f"a turn is from {speaker!r}; expected 'human' or 'gpt'")
        answer = speaker == "gpt"
        segments.append(TextSegment((tokenizer.assistant_id if answer else tokenizer.user_id,), False))
        empty = True
        for number, text in enumerate(read_text(value).split(IMAGE_TOKEN)):
            if number:
                if used == len(images):
                    raise InvalidRecord("invalid", f"more {IMAGE_TOKEN} than the record's {len(images)} images")
                segments.append(ImageSegment(images[used], target_role if answer else input_role, answer))
                used += 1
                empty = False
            # Of a text that begins with a newline, the rest is mostly printable, and nothing is to be cleaned.
            said = clean_text(text.strip()).strip()
            if said and (tokens := tokenizer.encode(said)):
                segments.append(TextSegment(tokens, answer))
                empty = False
        if answer:
            segments.append(TextSegment((tokenizer.end_id,), not empty))
    if used != len(images):
        raise InvalidRecord("invalid", f"{used} {IMAGE_TOKEN} for the record's {len(images)} images")
    return Sample(tuple(segments))


@dataclass(slots=True)
class Planned:
    """A sample laid out, whose images are still encoded: what is cheap is known before what is dear is done.

    Attributes:
      tokens: ids, one a slot.
      learned: first slot, and the one behind the last, of each text that is learned.
      visual: the same of each image, and its role.
      images: their files.
      transform: of all of them.
      features: of the images, computed before: by tower, [images, N, F].
      undecodable: an image could not be decoded then, and has none.
    """

    tokens: array[int]
    learned: list[tuple[int, int]]
    visual: list[tuple[int, int, Role]]
    images: tuple[bytes, ...]
    transform: Transform
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    undecodable: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Of the images."""
        return tuple([role for _, _, role in self.visual])

    def write(self, row: Mapping[str, np.ndarray], start: int, first_image: int) -> None:
        """``Slots.write``, which see."""
        row["tokens"][start : start + len(self.tokens)] = self.tokens
        weight = row["text_weight"]
        for first, last in self.learned:
            weight[start + first : start + last] = 1.0
        for number, (first, last, role) in enumerate(self.visual, first_image):
            here = slice(start + first, start + last)
            row["image"][here] = number
            row["patch"][here] = numbers(last - first)
            if role in _PREDICTED:
                row["visual_weight"][here] = 1.0

    def decode(self, image_size: int, max_pixels: int = MAX_PIXELS) -> Slots:
        """The slots, with the images decoded.

        Args:
          image_size: pixels a side.
          max_pixels: that an image may have to be decoded.

        Raises:
          InvalidRecord: an image cannot be decoded, or could not be when features were made of it.
        """
        squares = [np.empty((image_size, image_size, 3), np.uint8) for _ in self.images]
        self.decode_into(squares, max_pixels)
        size = len(self.tokens)
        row = {name: np.full(size, value, kind) for name, (value, kind) in _EMPTY.items()}
        self.write(row, 0, 0)
        return Slots(**row, images=tuple(squares), roles=self.roles, features=self.features)

    def decode_into(self, squares: Iterable[np.ndarray], max_pixels: int) -> None:
        """Decodes the images into the first of these arrays, [H, W, 3] uint8 each; raises as ``decode``."""
        fit, crop, share, flip = self.transform
        for data, square in zip(self.images, squares, strict=False):
            decode_into(square, data, fit=fit, crop=crop, share=share, flip=flip, max_pixels=max_pixels)
        if self.undecodable:
            raise InvalidRecord("undecodable", "an image that could not be decoded when features were made of it")


def lay_out(
    sample: Sample,
    tokenizer: Tokenizer,
    tokens_per_image: Mapping[Role, int],
    transform: Transform = STRETCHED,
    room: tuple[int, int] | None = None,
) -> Planned:
    """Lays a sample out in slots: an image takes its start marker, one slot a visual token, and its end marker.

    Args:
      sample: the segments.
      tokenizer: gives the marker ids.
      tokens_per_image: visual tokens of the tower that serves each role.
      transform: of every image.
      room: slots and images of a row, if the sample has to fit one.

    Raises:
      InvalidRecord: there is no room.
    """
    tokens = array("i")
    learned: list[tuple[int, int]] = []
    visual: list[tuple[int, int, Role]] = []
    images: list[bytes] = []
    for segment in sample.segments:
        start = len(tokens)
        if isinstance(segment, TextSegment):
            tokens.extend(segment.tokens)
            if segment.target:
                learned.append((start, len(tokens)))
            continue
        data, role, marked_target = segment
        count = tokens_per_image[role]
        tokens.append(tokenizer.image_start_id)
        tokens += _pads(tokenizer.image_pad_id, count)
        tokens.append(tokenizer.image_end_id)
        visual.append((start + 1, start + 1 + count, role))
        images.append(data)
        if marked_target:
            learned += [(start, start + 1), (start + 1 + count, start + 2 + count)]
    if room is not None:
        check_room(len(tokens), len(images), *room)
    return Planned(tokens, learned, visual, tuple(images), transform)


@functools.lru_cache(64)
def _pads(pad: int, count: int) -> array[int]:
    return array("i", [pad]) * count


@functools.lru_cache(4096)
def numbers(count: int) -> np.ndarray:
    """0, 1, … [count] int32; not to be written to."""
    return np.arange(count, dtype=np.int32)


def check_room(slots: int, images: int, most_slots: int, most_images: int) -> None:
    """Raises ``InvalidRecord`` for a sample of more slots or images than a row has."""
    if slots > most_slots or images > most_images:
        raise InvalidRecord(
            "too_long",
            f"{slots} slots and {images} images do not fit a row of {most_slots} slots and {most_images} images",
        )


def plan_sample(
    record: Mapping[str, Any],
    tokenizer: Tokenizer,
    tokens_per_image: Mapping[Role, int],
    *,
    input_role: Role = Role.INPUT,
    drop_request: bool = False,
    room: tuple[int, int] | None = None,
) -> Planned:
    """A stored record laid out in slots, its images to be decoded.

    It has ``image`` bytes or ``images``, and ``conversations``; perhaps ``FEATURES``, ``UNDECODABLE`` and a
    ``TRANSFORM``.

    Args:
      record: of a dataset.
      tokenizer: gives text ids and markers.
      tokens_per_image: visual tokens of the tower that serves each role.
      input_role: of images in human turns.
      drop_request: if a picture is asked for, leave the words of the request, and what is said before the picture, out.
      room: slots and images of a row, if the sample has to fit one.

    Raises:
      InvalidRecord: the record is malformed, there is no room, or nothing in it is learned: no answer in text or
        picture, where pictures take slots at all.
    """
    images = record["images"] if "images" in record else [record["image"]]
    conversations = record["conversations"]
    if isinstance(conversations, Mapping):  # TFDS gives a sequence of dicts as a dict of sequences
        pairs = zip(conversations["from"], conversations["value"], strict=True)
        turns = [(read_text(speaker), read_text(value)) for speaker, value in pairs]
    else:
        turns = [(turn["from"], turn["value"]) for turn in conversations]
    if drop_request and any(speaker == "gpt" and IMAGE_TOKEN in value for speaker, value in turns):
        turns = [(speaker, IMAGE_TOKEN * value.count(IMAGE_TOKEN)) for speaker, value in turns]
    sample = _turns_sample(turns, images, tokenizer, input_role)
    planned = lay_out(sample, tokenizer, tokens_per_image, record.get(TRANSFORM, STRETCHED), room)
    # Where no picture has slots, a tower is trained, and on the pictures themselves.
    alone = planned.images and not any(tokens_per_image.values())
    drawn = any(role in _PREDICTED and last > first for first, last, role in planned.visual)
    if not (planned.learned or drawn or alone):
        raise InvalidRecord("nothing_learned", "no answer in text or picture: nothing to learn")
    if features := record.get(FEATURES):
        for name, made in features.items():
            if len(made) != len(planned.images):
                raise InvalidRecord("invalid", f"{len(planned.images)} images, and features of {len(made)} by {name}")
        planned.features = features
        planned.undecodable = record.get(UNDECODABLE, False)
    return planned


def record_sample(
    record: Mapping[str, Any],
    tokenizer: Tokenizer,
    tokens_per_image: Mapping[Role, int],
    image_size: int,
    *,
    input_role: Role = Role.INPUT,
    drop_request: bool = False,
    max_pixels: int = MAX_PIXELS,
    room: tuple[int, int] | None = None,
) -> Slots:
    """A stored record laid out in slots, its images decoded: ``plan_sample`` and ``Planned.decode``, which see."""
    planned = plan_sample(
        record, tokenizer, tokens_per_image, input_role=input_role, drop_request=drop_request, room=room
    )
    return planned.decode(image_size, max_pixels)
