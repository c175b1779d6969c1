"""Sample: interleaved text and images, each an input, a target, or both; and its layout in slots.

Shape letters: n slots of one sample.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from unihetero_jax.data.packing.packed_batch import SLOT_ARRAYS, Role, count_up
from unihetero_jax.data.records.images import CENTER, MAX_PIXELS, Fit, decode_into
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.record import IMAGE_TOKEN, record_images
from unihetero_jax.data.records.text import MAX_CHARACTERS, clean_text, read_text
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

# Fields that are added to a stored record on its way. Precomputed features of its images, arrays by tower:
FEATURES = "tower_features"
# whether one of its images could not be decoded when these were computed;
UNDECODABLE = "undecodable"
# and how its images become square, if not by stretching.
TRANSFORM = "transform"


class Transform(NamedTuple):
    """How an image becomes square; the fields are arguments of `unihetero_jax.data.records.images.decode`."""

    fit: Fit = "stretch"
    crop: tuple[float, float] = CENTER
    share: float = 1.0
    flip: bool = False


STRETCHED = Transform()
_PREDICTED = frozenset((Role.TARGET, Role.BOTH))


# Named tuples, and dataclasses with slots: frozen dataclasses take three times as long to construct.
class TextSegment(NamedTuple):
    """Token ids, and whether they are targets (a loss on each) or only read."""

    tokens: Sequence[int]
    target: bool


class ImageSegment(NamedTuple):
    """One encoded image (PNG, JPEG, …), its role, and whether its markers are text targets."""

    data: bytes
    role: Role
    marked_target: bool


class Sample(NamedTuple):
    """Segments in reading order."""

    segments: tuple[TextSegment | ImageSegment, ...]


@dataclass(slots=True)
class Slots:
    """A sample laid out in slots, images decoded.

    Attributes:
        tokens: Ids [n] int32.
        image: Number of the image of a visual slot [n] int32; −1 on text.
        patch: Number of the visual token [n] int32; −1 on text.
        text_weight: Weights of text targets [n] float32.
        visual_weight: Weights of visual targets [n] float32.
        images: Pixels of each image, [H, W, 3] uint8.
        roles: Role of each image.
        features: Precomputed features by tower, [images, N, F].
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
        """Write the sample into a row; see `LaidOut.write`."""
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
    """Convert a LLaVA-style conversation to a sample; ``<image>`` may occur anywhere in a turn, any number of times.

    Human turns are read; gpt turns, their end token and the image markers in them are targets. An image in a human turn
    is an input, one in a gpt turn a target. An empty answer is no target: the model should not learn to say nothing.

    Raises:
        InvalidRecord: There is an unknown speaker, the numbers of ``<image>`` and of images differ, or all turns
            together have more than ``max_characters``.
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
            # Stripped first: most texts are printable but for a newline at the start, and then need no cleaning.
            cleaned = clean_text(text.strip()).strip()
            if cleaned and (tokens := tokenizer.encode(cleaned)):
                segments.append(TextSegment(tokens, answer))
                empty = False
        if answer:
            segments.append(TextSegment((tokenizer.end_id,), not empty))
    if used != len(images):
        raise InvalidRecord("invalid", f"{used} {IMAGE_TOKEN} for the record's {len(images)} images")
    return Sample(tuple(segments))


@dataclass(slots=True)
class Planned:
    """A sample laid out in slots, images still encoded: decoding is expensive and waits until its row is known.

    Attributes:
        tokens: Ids, one per slot.
        learned: First slot, and the slot after the last, of each text that is a target.
        visual: The same of each image, and its role.
        images: Encoded images.
        transform: How they become square.
        features: Precomputed features of the images by tower, [images, N, F].
        undecodable: Whether an image could not be decoded when these were computed.
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
        """Role of each image."""
        return tuple([role for _, _, role in self.visual])

    def write(self, row: Mapping[str, np.ndarray], start: int, first_image: int) -> None:
        """Write the sample into a row; see `LaidOut.write`."""
        row["tokens"][start : start + len(self.tokens)] = self.tokens
        weight = row["text_weight"]
        for first, last in self.learned:
            weight[start + first : start + last] = 1.0
        for number, (first, last, role) in enumerate(self.visual, first_image):
            here = slice(start + first, start + last)
            row["image"][here] = number
            row["patch"][here] = count_up(last - first)
            if role in _PREDICTED:
                row["visual_weight"][here] = 1.0

    def decode(self, image_size: int, max_pixels: int = MAX_PIXELS) -> Slots:
        """Decode the images.

        Args:
            image_size: Side of an image in pixels.
            max_pixels: Most pixels of an image that is decoded.

        Raises:
            InvalidRecord: An image cannot be decoded, or could not be when its features were computed.
        """
        squares = [np.empty((image_size, image_size, 3), np.uint8) for _ in self.images]
        self.decode_into(squares, max_pixels)
        size = len(self.tokens)
        row = {name: np.full(size, padding, dtype) for name, (padding, dtype) in SLOT_ARRAYS.items()}
        self.write(row, 0, 0)
        del row["segment"], row["position"]
        return Slots(**row, images=tuple(squares), roles=self.roles, features=self.features)

    def decode_into(self, squares: Iterable[np.ndarray], max_pixels: int) -> None:
        """Decode the images into the first of these arrays, [H, W, 3] uint8 each; raises as ``decode``."""
        fit, crop, share, flip = self.transform
        for data, square in zip(self.images, squares, strict=False):
            decode_into(square, data, fit=fit, crop=crop, share=share, flip=flip, max_pixels=max_pixels)
        if self.undecodable:
            raise InvalidRecord("undecodable", "an image that could not be decoded when its features were computed")


def lay_out(
    sample: Sample,
    tokenizer: Tokenizer,
    tokens_per_image: Mapping[Role, int],
    transform: Transform = STRETCHED,
    capacity: tuple[int, int] | None = None,
) -> Planned:
    """Lay a sample out in slots: an image takes its start marker, one slot per visual token, and its end marker.

    Args:
        sample: The sample.
        tokenizer: Tokenizer with the ids of the markers.
        tokens_per_image: Visual tokens of the tower of each role.
        transform: How every image becomes square.
        capacity: Slots and images of a row, if the sample has to fit one.

    Raises:
        InvalidRecord: The sample does not fit.
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
    if capacity is not None:
        check_fits(len(tokens), len(images), *capacity)
    return Planned(tokens, learned, visual, tuple(images), transform)


@functools.lru_cache(64)
def _pads(pad: int, count: int) -> array[int]:
    return array("i", [pad]) * count


def check_fits(slots: int, images: int, most_slots: int, most_images: int) -> None:
    """Raise ``InvalidRecord`` for a sample with more slots or images than a row has."""
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
    capacity: tuple[int, int] | None = None,
) -> Planned:
    """Lay a stored record out in slots, without decoding its images.

    Args:
        record: A record with ``image`` bytes or ``images``, and ``conversations``; perhaps with ``FEATURES``,
            ``UNDECODABLE`` and a ``TRANSFORM``.
        tokenizer: Tokenizer of the model.
        tokens_per_image: Visual tokens of the tower of each role.
        input_role: Role of images in human turns.
        drop_request: Whether to leave out the text of a request for an image, and the text before that image.
        capacity: Slots and images of a row, if the sample has to fit one.

    Raises:
        InvalidRecord: The record is malformed, does not fit, or has no target: no answer in text or image, where
            images take slots at all.
    """
    conversations = record["conversations"]
    if isinstance(conversations, Mapping):  # TFDS stores a sequence of dicts as a dict of sequences
        pairs = zip(conversations["from"], conversations["value"], strict=True)
        turns = [(read_text(speaker), read_text(value)) for speaker, value in pairs]
    else:
        turns = [(turn["from"], turn["value"]) for turn in conversations]
    if drop_request and any(speaker == "gpt" and IMAGE_TOKEN in value for speaker, value in turns):
        turns = [(speaker, IMAGE_TOKEN * value.count(IMAGE_TOKEN)) for speaker, value in turns]
    sample = _turns_sample(turns, record_images(record), tokenizer, input_role)
    planned = lay_out(sample, tokenizer, tokens_per_image, record.get(TRANSFORM, STRETCHED), capacity)
    # Where images take no slots, a tower is trained on the images alone.
    images_only = planned.images and not any(tokens_per_image.values())
    predicted = any(role in _PREDICTED and last > first for first, last, role in planned.visual)
    if not (planned.learned or predicted or images_only):
        raise InvalidRecord("nothing_learned", "no answer in text or image: nothing to learn")
    if features := record.get(FEATURES):
        for name, array in features.items():
            if len(array) != len(planned.images):
                raise InvalidRecord("invalid", f"{len(planned.images)} images, and features of {len(array)} by {name}")
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
    capacity: tuple[int, int] | None = None,
) -> Slots:
    """Lay a stored record out in slots and decode its images; see ``plan_sample`` and ``Planned.decode``."""
    planned = plan_sample(
        record, tokenizer, tokens_per_image, input_role=input_role, drop_request=drop_request, capacity=capacity
    )
    return planned.decode(image_size, max_pixels)
