"""Steps between reading a record and writing it: bounds that it must keep, smaller pictures, its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from unihetero_jax.data.records.images import FORMATS, MAX_PIXELS, reduce
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record
from unihetero_jax.errors import UsageError

# Pillow refuses more than twice its own limit whatever it is told.
_MOST_PIXELS = 170_000_000


class Dropped(Exception):
    """A record does not keep the bounds. ``reason`` is the counter that it falls under."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Steps:
    """What is done to every record; a bound of 0 bounds nothing.

    Attributes:
        resize: Shortest side, in pixels, that larger pictures are reduced to; they are stored as JPEG.
        quality: Of such a JPEG, 1 to 95.
        min_side: Least shortest side of a picture before that.
        max_side: Most longest side of a picture before that.
        max_aspect: Most longest side over shortest side.
        max_pixels: Most pixels of a picture: what is larger is never decoded.
        min_text: Least characters of all that is learned in a record, pictures left out; of records with such text.
        max_text: Most of them.
        drop_duplicates: Whether a record whose pictures and text an earlier one has is left out.

    Raises:
        UsageError: A value is impossible.
    """

    resize: int = 0
    quality: int = 90
    min_side: int = 0
    max_side: int = 0
    max_aspect: float = 0.0
    max_pixels: int = MAX_PIXELS
    min_text: int = 0
    max_text: int = 0
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (
            ("resize", 0, 16_384),
            ("quality", 1, 95),
            ("min_side", 0, 1 << 20),
            ("max_side", 0, 1 << 20),
            ("max_aspect", 0, 1 << 20),
            ("max_pixels", 1, _MOST_PIXELS),
            ("min_text", 0, 1 << 30),
            ("max_text", 0, 1 << 30),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"{name}={value} is impossible: expected {least:,} to {most:,}")
        if 0 < self.max_aspect < 1:
            raise UsageError(f"max_aspect={self.max_aspect} is impossible: longest over shortest side is 1 or more")
        for name, least, most in (("side", self.min_side, self.max_side), ("text", self.min_text, self.max_text)):
            if 0 < most < least:
                raise UsageError(f"min_{name}={least} is above max_{name}={most}: no record could be both")

    def apply(self, record: Record) -> Record:
        """The record as it is to be stored.

        Raises:
            Dropped: It does not keep a bound, or a picture of it cannot be read.
        """
        self._check_text(record)
        images = tuple(self._picture(data) for data in record.images)
        return record if images == record.images else dataclasses.replace(record, images=images)

    def _check_text(self, record: Record) -> None:
        learned = "".join(turn.text for turn in record.conversations if turn.speaker == "gpt")
        length = len(learned.replace(IMAGE_TOKEN, "").strip())
        if record.task == "generation" or not (self.min_text or self.max_text):
            return
        if length < self.min_text:
            raise Dropped("text_too_short", f"{length} characters, fewer than {self.min_text}")
        if self.max_text and length > self.max_text:
            raise Dropped("text_too_long", f"{length:,} characters, more than {self.max_text:,}")

    def _picture(self, data: bytes) -> bytes:
        if not data:
            raise Dropped("empty_image", "a picture of no bytes")
        try:
            # What it says of itself comes first: a picture that is too large is never decoded.
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
        except Image.DecompressionBombError as error:
            raise Dropped("too_many_pixels", str(error)) from error
        except UnidentifiedImageError as error:
            raise Dropped("undecodable", f"{len(data):,} bytes, expected one of {', '.join(FORMATS)}") from error
        except Exception as error:  # what a decoder raises on bytes that it does not expect is anything
            raise Dropped("undecodable", f"{len(data):,} bytes: {error}") from error
        self._check_size(width, height)
        return self._reduced(data) if 0 < self.resize < min(width, height) else data

    def _check_size(self, width: int, height: int) -> None:
        short, long = sorted((width, height))
        size = f"{width} x {height} pixels"
        if width * height > self.max_pixels:
            raise Dropped("too_many_pixels", f"{size}, more than {self.max_pixels:,} in all")
        if short < self.min_side:
            raise Dropped("too_small", f"{size}, shortest side under {self.min_side}")
        if self.max_side and long > self.max_side:
            raise Dropped("too_large", f"{size}, longest side over {self.max_side}")
        if self.max_aspect and long > self.max_aspect * short:
            raise Dropped("aspect", f"{size}, longer than {self.max_aspect:g} times its width or height")

    def _reduced(self, data: bytes) -> bytes:
        try:
            pixels = reduce(data, self.resize, max_pixels=self.max_pixels)
        except InvalidRecord as error:
            raise Dropped(error.reason, str(error)) from error
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
        return file.getvalue()


def digest(record: Record) -> bytes:
    """128 bits of what makes two records the same: their pictures and what is said.

    The request of a caption is left out: which phrasing it has is an accident of its key.
    """
    found = hashlib.blake2b(digest_size=16)
    for part in _told(record):
        # Lengths keep ("ab", "c") apart from ("a", "bc").
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def _told(record: Record) -> Iterator[bytes]:
    yield record.task.encode()
    yield from record.images
    for speaker, text in record.conversations:
        if record.task != "caption" or speaker == "gpt":
            yield speaker.encode()
            yield text.encode()
