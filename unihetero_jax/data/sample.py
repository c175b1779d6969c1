"""Sample: interleaved text and images, each an input, a target, or both; and how it is laid out in slots.

Shape letters: n slots of one sample.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unihetero_jax.data.images import CENTER, MAX_PIXELS, Fit, decode
from unihetero_jax.data.invalid import InvalidRecord
from unihetero_jax.data.text import MAX_CHARACTERS, clean_text, read_text
from unihetero_jax.tokenizer import Tokenizer

IMAGE_TOKEN = "<image>"
# Where a record has the features of its images that were computed before (``data.features``): arrays by tower.
FEATURES = "tower_features"
# Where a record says how its pictures become square, if not by stretching them.
TRANSFORM = "transform"


@dataclass(frozen=True)
class Transform:
    """How a picture becomes a square one.

    ``fit``, ``crop``, ``share`` and ``flip`` are those of ``data.images.decode``.
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


@dataclass(frozen=True)
class TextSegment:
    """Token ids, and whether they are learned (a loss on each) or only read."""

    tokens: tuple[int, ...]
    target: bool


@dataclass(frozen=True)
class ImageSegment:
    """One encoded image (PNG, JPEG, …) and its role. ``marked_target``: its markers are text targets."""

    data: bytes
    role: Role
    marked_target: bool


@dataclass(frozen=True)
class Sample:
    """Segments in reading order."""

    segments: tuple[TextSegment | ImageSegment, ...]


@dataclass(frozen=True)
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
    if (characters := sum(len(turn["value"]) + 1 for turn in conversations)) > max_characters:
        raise InvalidRecord("too_long", f"{characters} characters; expected at most {max_characters}")
    segments: list[TextSegment | ImageSegment] = [TextSegment((tokenizer.begin_id,), target=False)]
    used = 0
    for turn in conversations:
        if turn["from"] not in ("human", "gpt"):
            raise InvalidRecord("invalid", f"a turn is from {turn['from']!r}; expected 'human' or 'gpt'")
        answer = turn["from"] == "gpt"
        segments.append(TextSegment((tokenizer.assistant_id if answer else tokenizer.user_id,), target=False))
        empty = True
        for number, text in enumerate(read_text(turn["value"]).split(IMAGE_TOKEN)):
            if number:
                if used == len(images):
                    raise InvalidRecord("invalid", f"more {IMAGE_TOKEN} than the record's {len(images)} images")
                role = target_role if answer else input_role
                segments.append(ImageSegment(images[used], role, marked_target=answer))
                used += 1
                empty = False
            said = clean_text(text).strip()
            if said and (tokens := tokenizer.encode(said)):
                segments.append(TextSegment(tuple(tokens), target=answer))
                empty = False
        if answer:
            segments.append(TextSegment((tokenizer.end_id,), target=not empty))
    if used != len(images):
        raise InvalidRecord("invalid", f"{used} {IMAGE_TOKEN} for the record's {len(images)} images")
    return Sample(tuple(segments))


def lay_out(
    sample: Sample,
    tokenizer: Tokenizer,
    tokens_per_image: Mapping[Role, int],
    image_size: int,
    max_pixels: int = MAX_PIXELS,
    transform: Transform = STRETCHED,
    room: tuple[int, int] | None = None,
) -> Slots:
    """Lays a sample out in slots: an image takes its start marker, one slot a visual token, and its end marker.

    Args:
      sample: the segments.
      tokenizer: gives the marker ids.
      tokens_per_image: visual tokens of the tower that serves each role.
      image_size: pixels a side that images are decoded to.
      max_pixels: that an image may have to be decoded.
      transform: of every image.
      room: slots and images of a row, if the sample has to fit one; that is seen before any image is decoded.

    Raises:
      InvalidRecord: an image cannot be decoded, or there is no room.
    """
    tokens: list[int] = []
    learned: list[slice] = []
    visual: list[slice] = []
    images: list[ImageSegment] = []

    def add_text(ids: Sequence[int], target: bool) -> None:
        if target:
            learned.append(slice(len(tokens), len(tokens) + len(ids)))
        tokens.extend(ids)

    for segment in sample.segments:
        if isinstance(segment, TextSegment):
            add_text(segment.tokens, segment.target)
            continue
        count = tokens_per_image[segment.role]
        add_text((tokenizer.image_start_id,), segment.marked_target)
        visual.append(slice(len(tokens), len(tokens) + count))
        tokens.extend([tokenizer.image_pad_id] * count)
        add_text((tokenizer.image_end_id,), segment.marked_target)
        images.append(segment)
    if room is not None:
        check_room(len(tokens), len(images), *room)
    size = len(tokens)
    image, patch = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
    text_weight, visual_weight = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for here in learned:
        text_weight[here] = 1.0
    for number, (here, segment) in enumerate(zip(visual, images, strict=True)):
        image[here] = number
        patch[here] = np.arange(here.stop - here.start)
        if segment.role in (Role.TARGET, Role.BOTH):
            visual_weight[here] = 1.0
    decoded = (
        decode(
            segment.data,
            image_size,
            fit=transform.fit,
            crop=transform.crop,
            share=transform.share,
            flip=transform.flip,
            max_pixels=max_pixels,
        )
        for segment in images
    )
    roles = tuple(segment.role for segment in images)
    return Slots(np.asarray(tokens, np.int32), image, patch, text_weight, visual_weight, tuple(decoded), roles)


def check_room(slots: int, images: int, most_slots: int, most_images: int) -> None:
    """Raises ``InvalidRecord`` for a sample of more slots or images than a row has."""
    if slots > most_slots or images > most_images:
        raise InvalidRecord(
            "too_long",
            f"{slots} slots and {images} images do not fit a row of {most_slots} slots and {most_images} images",
        )


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
    """A stored record laid out in slots.

    It has ``image`` bytes or ``images``, and ``conversations``; perhaps ``FEATURES`` and a ``TRANSFORM``.

    Args:
      record: of a dataset.
      tokenizer: gives text ids and markers.
      tokens_per_image: visual tokens of the tower that serves each role.
      image_size: pixels a side that images are decoded to.
      input_role: of images in human turns.
      drop_request: if a picture is asked for, leave the words of the request, and what is said before the picture, out.
      max_pixels: that an image may have to be decoded.
      room: slots and images of a row, if the sample has to fit one; that is seen before any image is decoded.

    Raises:
      InvalidRecord: the record is malformed, its image cannot be decoded, there is no room, or nothing in it is
        learned: no answer in text or picture, where pictures take slots at all.
    """
    images = record["images"] if "images" in record else [record["image"]]
    conversations = record["conversations"]
    if isinstance(conversations, Mapping):  # TFDS gives a sequence of dicts as a dict of sequences
        turns = zip(conversations["from"], conversations["value"], strict=True)
        conversations = [{"from": read_text(speaker), "value": read_text(value)} for speaker, value in turns]
    if drop_request and any(turn["from"] == "gpt" and IMAGE_TOKEN in turn["value"] for turn in conversations):
        conversations = [_only_pictures(turn) for turn in conversations]
    sample = conversation_sample(conversations, images, tokenizer, input_role)
    transform = record.get(TRANSFORM, STRETCHED)
    slots = lay_out(sample, tokenizer, tokens_per_image, image_size, max_pixels, transform, room)
    # Where no picture has slots, a tower is trained, and on the pictures themselves.
    alone = bool(slots.images) and not any(tokens_per_image.values())
    if not (alone or slots.text_weight.any() or slots.visual_weight.any()):
        raise InvalidRecord("nothing_learned", "no answer in text or picture: nothing to learn")
    features: Mapping[str, np.ndarray] = record.get(FEATURES, {})
    for name, array in features.items():
        if len(array) != len(slots.images):
            raise InvalidRecord("invalid", f"{len(slots.images)} images, and features of {len(array)} by {name}")
    return replace(slots, features=features) if features else slots


def _only_pictures(turn: Mapping[str, str]) -> dict[str, str]:
    return {"from": turn["from"], "value": IMAGE_TOKEN * turn["value"].count(IMAGE_TOKEN)}
