"""Steps between reading a record and storing it: limits that it must keep, smaller images, its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from unihetero_jax.data.ingest.importer import Refused
from unihetero_jax.data.ingest.settings import Steps
from unihetero_jax.data.records.images import FORMATS, check_whole, reduce
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record


def apply(steps: Steps, record: Record) -> Record:
    """Return the record as it is to be stored.

    Raises:
        Refused: The record exceeds a limit, or one of its images cannot be read.
    """
    size = sum(map(len, record.images)) + sum(len(turn.text) for turn in record.conversations)
    if size > steps.max_record_mb * 1_000_000:
        raise Refused("record_too_large", f"{size:,} bytes: expected at most --max_record_mb")
    _check_text(steps, record)
    images = tuple(_image(steps, data) for data in record.images)
    return record if images == record.images else dataclasses.replace(record, images=images)


def _check_text(steps: Steps, record: Record) -> None:
    answers = "".join(turn.text for turn in record.conversations if turn.speaker == "gpt")
    length = len(answers.replace(IMAGE_TOKEN, "").strip())
    if record.task == "generation" or not (steps.min_text or steps.max_text):
        return
    if length < steps.min_text:
        raise Refused("text_too_short", f"{length} characters, fewer than {steps.min_text}")
    if steps.max_text and length > steps.max_text:
        raise Refused("text_too_long", f"{length:,} characters, more than {steps.max_text:,}")


def _image(steps: Steps, data: bytes) -> bytes:
    if not data:
        raise Refused("empty_image", "an image of no bytes")
    try:
        # The header comes first: an image that is too large is never decoded.
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise Refused("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise Refused("undecodable", f"{len(data):,} bytes, expected one of {', '.join(FORMATS)}") from error
    except Exception as error:  # a decoder may raise anything on unexpected bytes
        raise Refused("undecodable", f"{len(data):,} bytes: {error}") from error
    _check_size(steps, width, height)
    try:
        check_whole(data)
        return _reduced(steps, data) if 0 < steps.resize < min(width, height) else data
    except InvalidRecord as error:
        raise Refused(error.reason, str(error)) from error


def _check_size(steps: Steps, width: int, height: int) -> None:
    short, long = sorted((width, height))
    size = f"{width} x {height} pixels"
    if width * height > steps.max_pixels:
        raise Refused("too_many_pixels", f"{size}, more than {steps.max_pixels:,} in all")
    if short < steps.min_side:
        raise Refused("too_small", f"{size}, shortest side under {steps.min_side}")
    if steps.max_side and long > steps.max_side:
        raise Refused("too_large", f"{size}, longest side over {steps.max_side}")
    if steps.max_aspect and long > steps.max_aspect * short:
        raise Refused("aspect", f"{size}, longer than {steps.max_aspect:g} times its width or height")


def _reduced(steps: Steps, data: bytes) -> bytes:
    pixels = reduce(data, steps.resize, max_pixels=steps.max_pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=steps.quality)
    return file.getvalue()


def digest(record: Record) -> bytes:
    """Return 128 bits that are equal for records with the same images and texts.

    The prompt of a caption is left out: which phrase it is depends on its key.
    """
    found = hashlib.blake2b(digest_size=16)
    for part in _parts(record):
        # Lengths keep ("ab", "c") apart from ("a", "bc").
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def _parts(record: Record) -> Iterator[bytes]:
    yield record.task.encode()
    yield from record.images
    for speaker, text in record.conversations:
        if record.task != "caption" or speaker == "gpt":
            yield speaker.encode()
            yield text.encode()
