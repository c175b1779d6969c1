"""Steps between reading a record and writing it: bounds that it must keep, smaller pictures, its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import warnings
from collections.abc import Iterator

from PIL import Image, ImageOps, UnidentifiedImageError

from unihetero_jax.data.record import Record
from unihetero_jax.data.sample import IMAGE_TOKEN
from unihetero_jax.errors import UsageError

# Formats that stand for one picture each; Pillow knows others that run programs or name other files.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Pillow refuses more than twice its own limit whatever it is told.
_MOST_PIXELS = 170_000_000
# What decoders raise on bad bytes; a struct.error escapes from some of them.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, MemoryError, OverflowError)


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
    max_pixels: int = 100_000_000
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
        with warnings.catch_warnings():
            # Of large pictures: they are bounded here. And of curious metadata, which nobody reads.
            warnings.simplefilter("ignore")
            try:
                with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                    self._check_size(*picture.size)
                    return self._reduced(picture) or data
            except Image.DecompressionBombError as error:
                raise Dropped("too_many_pixels", str(error)) from error
            except UnidentifiedImageError as error:
                raise Dropped("undecodable", f"{len(data):,} bytes that are no picture") from error
            except _BROKEN as error:
                raise Dropped("undecodable", f"{len(data):,} bytes: {error}") from error

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

    def _reduced(self, picture: Image.Image) -> bytes | None:
        """The picture at the wanted size as JPEG; None where it is that small already."""
        short = min(picture.size)
        if not self.resize or short <= self.resize:
            return None
        # JPEG decodes to 1/2, 1/4 or 1/8 for a fraction of the time; twice the wanted size leaves the filter its due.
        picture.draft("RGB", (2 * self.resize, 2 * self.resize))
        upright = ImageOps.exif_transpose(_rgb(picture))
        scale = self.resize / min(upright.size)
        size = (max(self.resize, round(upright.width * scale)), max(self.resize, round(upright.height * scale)))
        file = io.BytesIO()
        upright.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0).save(file, "JPEG", quality=self.quality)
        return file.getvalue()


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode as RGB: what is transparent lies on white, 16 bits keep their upper eight."""
    if picture.mode.startswith("I"):
        picture = picture.point(lambda value: value / 256).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layers = picture.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        flat = Image.alpha_composite(white, layers)
        # Rotation is told in the metadata, which compositing drops.
        flat.info["exif"] = picture.info.get("exif", b"")
        return flat.convert("RGB")
    return picture.convert("RGB")


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
