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


@dataclass(frozen=True)
class Planned:
    """A sample laid out, whose images are still encoded: what is cheap is known before what is dear is done.

    ``slots`` lacks its images, ``images`` are their files, ``transform`` is of all of them.
    """

    slots: Slots
    images: tuple[bytes, ...]
    transform: Transform

    def decode(self, image_size: int, max_pixels: int = MAX_PIXELS) -> Slots:
        """The slots with their images.

        Args:
          image_size: pixels a side.
          max_pixels: that an image may have to be decoded.

        Raises:
          InvalidRecord: an image cannot be decoded.
        """
        how = self.transform
        decoded = [
            decode(
                data,
                image_size,
                fit=how.fit,
                crop=how.crop,
                share=how.share,
                flip=how.flip,
                max_pixels=max_pixels,
            )
            for data in self.images
        ]
        return replace(self.slots, images=tuple(decoded)) if decoded else self.slots


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
    tokens: list[int] = []
    learned: list[tuple[int, int]] = []
    visual: list[int] = []
    images: list[ImageSegment] = []
    for segment in sample.segments:
        start = len(tokens)
        if isinstance(segment, TextSegment):
            tokens += segment.tokens
            if segment.target:
                learned.append((start, len(tokens)))
            continue
        count = tokens_per_image[segment.role]
        tokens.append(tokenizer.image_start_id)
        tokens += [tokenizer.image_pad_id] * count
        tokens.append(tokenizer.image_end_id)
        visual.append(start + 1)
        images.append(segment)
        if segment.marked_target:
            learned += [(start, start + 1), (start + 1 + count, start + 2 + count)]
    if room is not None:
        check_room(len(tokens), len(images), *room)
    size = len(tokens)
    places = np.full((2, size), -1, np.int32)
    weights = np.zeros((2, size), np.float32)
    for first, last in learned:
        weights[0, first:last] = 1.0
    for number, (first, segment) in enumerate(zip(visual, images, strict=True)):
        last = first + tokens_per_image[segment.role]
        places[0, first:last] = number
        places[1, first:last] = np.arange(last - first, dtype=np.int32)
        if segment.role in (Role.TARGET, Role.BOTH):
            weights[1, first:last] = 1.0
    roles = tuple([segment.role for segment in images])
    slots = Slots(np.array(tokens, np.int32), places[0], places[1], weights[0], weights[1], (), roles)
    return Planned(slots, tuple([segment.data for segment in images]), transform)


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

    It has ``image`` bytes or ``images``, and ``conversations``; perhaps ``FEATURES`` and a ``TRANSFORM``.

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
        turns = zip(conversations["from"], conversations["value"], strict=True)
        conversations = [{"from": read_text(speaker), "value": read_text(value)} for speaker, value in turns]
    if drop_request and any(turn["from"] == "gpt" and IMAGE_TOKEN in turn["value"] for turn in conversations):
        conversations = [_only_pictures(turn) for turn in conversations]
    sample = conversation_sample(conversations, images, tokenizer, input_role)
    planned = lay_out(sample, tokenizer, tokens_per_image, record.get(TRANSFORM, STRETCHED), room)
    slots = planned.slots
    # Where no picture has slots, a tower is trained, and on the pictures themselves.
    alone = planned.images and not any(tokens_per_image.values())
    if not (slots.text_weight.any() or slots.visual_weight.any() or alone):
        raise InvalidRecord("nothing_learned", "no answer in text or picture: nothing to learn")
    features: Mapping[str, np.ndarray] | None = record.get(FEATURES)
    if not features:
        return planned
    for name, array in features.items():
        if len(array) != len(planned.images):
            raise InvalidRecord("invalid", f"{len(planned.images)} images, and features of {len(array)} by {name}")
    return replace(planned, slots=replace(slots, features=features))


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


def _only_pictures(turn: Mapping[str, str]) -> dict[str, str]:
    return {"from": turn["from"], "value": IMAGE_TOKEN * turn["value"].count(IMAGE_TOKEN)}
