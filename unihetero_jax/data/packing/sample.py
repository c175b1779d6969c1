"""Sample: interleaved text and images, each an input, a target, or both; and its layout in slots."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unihetero_jax.data.packing.slots import PREDICTED, STRETCHED, Role, Slots, Transform, check_fits
from unihetero_jax.data.records.images import MAX_PIXELS
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.record import IMAGE_TOKEN, read_turns, record_images
from unihetero_jax.data.records.text import MAX_CHARACTERS, clean_text, read_text
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

# Fields that are added to a stored record on its way. Precomputed features of its images, arrays by tower:
FEATURES = "tower_features"
# whether one of its images could not be decoded when these were computed;
UNDECODABLE = "undecodable"
# and how its images become square, if not by stretching.
TRANSFORM = "transform"


# Named tuples: frozen dataclasses take three times as long to construct.
class TextSegment(NamedTuple):
    """Token ids, and whether they are targets (a loss on each) or only read."""

    tokens: Sequence[int]
    target: bool


class ImageSegment(NamedTuple):
    """One encoded image (PNG, JPEG, …), its role, and whether its markers are text targets."""

    data: bytes
    role: Role
    marked_target: bool


Segment = TextSegment | ImageSegment


def conversation_segments(
    turns: Sequence[tuple[str, str]], images: Sequence[bytes], tokenizer: Tokenizer, input_role: Role = Role.INPUT
) -> list[Segment]:
    """Convert a LLaVA-style conversation to segments in reading order.

    Human turns are read; gpt turns, their end token and the image markers in them are targets. An image in a human turn
    is an input, one in a gpt turn a target. An empty answer is no target: the model should not learn to be silent.

    Args:
        turns: Speaker and text of each turn; ``<image>`` may occur anywhere in a text, any number of times.
        images: Encoded images, in order.
        tokenizer: Tokenizer of the model.
        input_role: Role of images in human turns.

    Raises:
        InvalidRecord: There is an unknown speaker, the numbers of ``<image>`` and of images differ, or all turns
            together are too long.
    """
    if (characters := sum([len(value) + 1 for _, value in turns])) > MAX_CHARACTERS:
        raise InvalidRecord("too_long", f"{characters} characters; expected at most {MAX_CHARACTERS}")
    segments: list[Segment] = [TextSegment((tokenizer.begin_id,), False)]
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
                segments.append(ImageSegment(images[used], Role.TARGET if answer else input_role, answer))
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
    return segments


def lay_out(
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    tokens_per_image: Mapping[Role, int],
    transform: Transform = STRETCHED,
    capacity: tuple[int, int] | None = None,
) -> Slots:
    """Lay segments out in slots: an image takes its start marker, one slot per visual token, and its end marker.

    Args:
        segments: The segments of a sample.
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
    for segment in segments:
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
    return Slots(tokens, learned, visual, tuple(images), transform)


@functools.lru_cache(64)
def _pads(pad: int, count: int) -> array[int]:
    return array("i", [pad]) * count


def plan_sample(
    record: Mapping[str, Any],
    tokenizer: Tokenizer,
    tokens_per_image: Mapping[Role, int],
    *,
    input_role: Role = Role.INPUT,
    drop_request: bool = False,
    capacity: tuple[int, int] | None = None,
) -> Slots:
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
    turns = read_turns(record)
    if drop_request and any(speaker == "gpt" and IMAGE_TOKEN in value for speaker, value in turns):
        turns = [(speaker, IMAGE_TOKEN * value.count(IMAGE_TOKEN)) for speaker, value in turns]
    segments = conversation_segments(turns, record_images(record), tokenizer, input_role)
    sample = lay_out(segments, tokenizer, tokens_per_image, record.get(TRANSFORM, STRETCHED), capacity)
    # Where images take no slots, a tower is trained on the images alone.
    images_only = sample.images and not any(tokens_per_image.values())
    predicted = any(role in PREDICTED and last > first for first, last, role in sample.visual)
    if not (sample.learned or predicted or images_only):
        raise InvalidRecord("nothing_learned", "no answer in text or image: nothing to learn")
    if features := record.get(FEATURES):
        for name, array in features.items():
            if len(array) != len(sample.images):
                raise InvalidRecord("invalid", f"{len(sample.images)} images, and features of {len(array)} by {name}")
        sample.features = features
        sample.undecodable = record.get(UNDECODABLE, False)
    return sample


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
    """Lay a stored record out in slots and decode its images; see ``plan_sample`` and ``Slots.decode``."""
    sample = plan_sample(
        record, tokenizer, tokens_per_image, input_role=input_role, drop_request=drop_request, capacity=capacity
    )
    return sample.decode(image_size, max_pixels)
