"""Decode encoded images to pixels of one size: in bounded memory, without log lines, never to a wrong image.

JPEG is decoded by libjpeg-turbo (``simplejpeg``), at a fraction of its size where less is needed; what it cannot
decode, and every other format, by Pillow. Both release the GIL. A file's header is checked before it is decoded.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageChops, UnidentifiedImageError

from unihetero_jax.data.records.invalid import MAX_PIXELS, InvalidRecord

Fit = Literal["stretch", "crop", "pad"]
FITS: tuple[Fit, ...] = ("stretch", "crop", "pad")
CENTER = (0.5, 0.5)

# Formats of Pillow. None that runs a program (EPS), and not TIFF, whose library prints to the terminal.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "AVIF")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
# Longest header that is cached: a longer one describes a single image, such as EXIF with a thumbnail.
_MOST_ALIKE = 2048
_ORIENTATION = 0x0112
# Per EXIF orientation, how to turn stored pixels upright: swap the axes, then reverse rows, then columns (EXIF 2.3).
_UPRIGHT = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# A JPEG is decoded at least this much larger than wanted, unless its decoder hits the size exactly: without the margin
# its reduced cosine transform leaves 3 times the error against the full image (1.6 instead of 0.5 gray levels).
_MARGIN = 1.25
# Resizing by more than twice this factor starts with a mean of whole blocks: 4 times as fast, no visible difference.
_REDUCING_GAP = 2.0
# Every scan visits all pixels, however short it is in the file; encoders use about ten.
_MOST_SCANS = 32
_GRAY = 127
_SCRATCH_BYTES = 64 << 20

# Pillow reports odd files in warnings and log lines; here the exception or the pixels report them.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


class Scratch(threading.local):
    """A reusable array per thread, which the thread's next call overwrites.

    Fresh memory costs a page fault every 4 kB; for an image these can take as long as decoding it.
    """

    def __init__(self) -> None:
        self._array = np.empty(0, np.uint8)

    def take(self, size: int) -> np.ndarray:
        """Return at least ``size`` bytes with arbitrary content, uint8 [n]."""
        if size > _SCRATCH_BYTES:
            return np.empty(size, np.uint8)
        if size > len(self._array):
            self._array = np.empty(size, np.uint8)
        return self._array


_SCRATCH = Scratch()


def decode(
    data: bytes,
    size: int,
    *,
    fit: Fit = "stretch",
    crop: tuple[float, float] = CENTER,
    share: float = 1.0,
    flip: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> UInt8[np.ndarray, "size size 3"]:
    """Decode the first frame of an encoded image, upright, over white, in 8 bits.

    Args:
        data: The file's bytes; they determine the format.
        size: Side of the result in pixels. An image of this size is not resampled; others are resized with bicubic
            antialiasing.
        fit: ``stretch`` both sides; cut out a square (``crop``); or keep the whole image in a gray square (``pad``).
        crop: Position of the square of ``crop``, from (0, 0), left and top, to (1, 1), right and bottom.
        share: Side of that square as a share of the image's shorter side. 224 / 256 cuts 224 pixels out of 256 without
            resampling.
        flip: Whether to mirror the result, left to right.
        max_pixels: Most pixels that may be decoded; memory stays under 20 bytes per pixel. A larger JPEG passes if it
            can be decoded at a reduced size.

    Raises:
        InvalidRecord: ``undecodable``: not an image, or a truncated or damaged one; ``too_large``: too many pixels.
    """
    square = np.empty((size, size, 3), np.uint8)
    decode_into(square, data, fit=fit, crop=crop, share=share, flip=flip, max_pixels=max_pixels)
    return square


def decode_into(
    square: UInt8[np.ndarray, "size size 3"],
    data: bytes,
    *,
    fit: Fit = "stretch",
    crop: tuple[float, float] = CENTER,
    share: float = 1.0,
    flip: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Decode as ``decode`` into an existing array, which saves a copy. After an error its content is arbitrary."""
    jpeg = data.startswith(_JPEG)
    try:
        if jpeg:
            decoded = _decode_jpeg(data, len(square), fit, share, max_pixels, square)
        else:
            decoded = _decode_other(data, max_pixels)
        _place(square, decoded, fit, crop, share, flip)
    except (InvalidRecord, MemoryError):
        raise
    except Exception as error:
        raise _reason(data, error) from error


def reduce(data: bytes, side: int, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width 3"]:
    """Decode the first frame of an encoded image with its aspect kept, upright, over white, in 8 bits.

    Args:
        data: The file's bytes; they determine the format.
        side: Pixels of the result's shorter side.
        max_pixels: Most pixels that may be decoded.

    Raises:
        InvalidRecord: As for ``decode``.
    """
    try:
        # A center crop of that side needs the same scale as the whole image.
        jpeg = data.startswith(_JPEG)
        decoded = _decode_jpeg(data, side, "crop", 1.0, max_pixels) if jpeg else _decode_other(data, max_pixels)
        scale = side / min(decoded.width, decoded.height)
        made = (max(side, round(decoded.width * scale)), max(side, round(decoded.height * scale)))
        pixels = _resample(decoded.image, (0.0, 0.0, decoded.width, decoded.height), made)
        swap, flip_rows, flip_columns = _UPRIGHT.get(decoded.orientation, _UPRIGHT[1])
        pixels = pixels.swapaxes(0, 1) if swap else pixels
        return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1].copy()
    except (InvalidRecord, MemoryError):
        raise
    except Exception as error:
        raise _reason(data, error) from error


def _reason(data: bytes, error: Exception) -> InvalidRecord:
    """Return any error of a decoder, which may be of any type, as an ``InvalidRecord`` with its counter."""
    if isinstance(error, Image.DecompressionBombError):
        return InvalidRecord("too_large", f"image of {len(data)} bytes: {error}")
    return InvalidRecord("undecodable", f"image of {len(data)} bytes cannot be decoded: {error}")


def _check_pixels(data: bytes, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        what = f"image of {len(data)} bytes has {width} x {height} pixels to decode, more than {max_pixels}"
        raise InvalidRecord("too_large", what)


class _Decoded(NamedTuple):
    """An image in its stored orientation, valid until this thread decodes the next; width and height in its pixels."""

    image: np.ndarray | Image.Image
    width: float
    height: float
    orientation: int


class _JpegHeader(NamedTuple):
    """The header of a JPEG, up to its first scan.

    Attributes:
        size: Height and width; None where turbojpeg cannot read it.
        buffered: Whether the decoder holds the whole image in memory, at any scale.
        orientation: EXIF orientation, 1 to 8.
    """

    size: tuple[int, int] | None
    buffered: bool
    orientation: int


def _jpeg_header(data: bytes) -> _JpegHeader:
    """Read the segments before the first scan."""
    scan = data.find(_SCAN, 0, _MOST_ALIKE)
    if 0 < scan <= len(data) - 4:
        try:
            return _known_header(data[: scan + 2 + (data[scan + 2] << 8 | data[scan + 3])])
        except ValueError:  # the scan marker lies within another segment, such as a thumbnail
            pass
    return _read_header(data)


def _read_header(data: bytes) -> _JpegHeader:
    """Read the segments (ITU-T T.81, B.1; EXIF in APP1); raise ``ValueError`` where no scan follows them."""
    components, progressive, orientation = 0, False, 1
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # without a length
            place += 2
            continue
        end = place + 2 + (data[place + 2] << 8 | data[place + 3])
        if marker == 0xDA and end <= len(data):
            buffered = progressive or data[place + 4] < components
            return _JpegHeader(_jpeg_size(data), buffered, orientation)
        if marker == 0xE1 and data.startswith(b"Exif\0\0", place + 4):
            orientation = _orientation(functools.partial(_exif, data[place + 4 : end]))
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components, progressive = data[place + 9], marker in (0xC2, 0xC6, 0xCA, 0xCE)
        place = end
    raise ValueError("a JPEG without a scan")


# Files that one program wrote in one size have the same header, which is parsed once.
_known_header = functools.lru_cache(256)(_read_header)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # a subsampling that turbojpeg does not know, or not a JPEG at all
        return None
    return None if colors in ("CMYK", "YCCK") else (height, width)


def _exif(segment: bytes) -> Image.Exif:
    fields = Image.Exif()
    fields.load(segment)
    return fields


def _orientation(read: Callable[[], Image.Exif]) -> int:
    """Return the EXIF orientation, or 1 where it is unknown or the EXIF is broken: the image may still be fine."""
    try:
        return int(read().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error, EOFError, KeyError, OSError):
        return 1


def _decode_jpeg(
    data: bytes, size: int, fit: Fit, share: float, max_pixels: int, into: np.ndarray | None = None
) -> _Decoded:
    """Decode into ``into`` where it has the decoded size, otherwise into scratch memory."""
    header = _jpeg_header(data)
    if header.buffered and (scans := data.count(_SCAN)) > _MOST_SCANS:
        raise ValueError(f"a JPEG of {scans} scans; expected at most {_MOST_SCANS}")
    if header.size is None:
        return _decode_other(data, max_pixels)
    height, width = header.size
    if header.buffered:
        _check_pixels(data, width, height, max_pixels)
    smallest: dict[str, int] = {}
    smaller_height, smaller_width = height, width
    across, down = _scales(width, height, size, fit, share)
    scale = max(across, down)
    if scale < 1 and max(width, height) > 8:
        smallest = _at_least(width, height, scale)
        smaller_height, smaller_width, _, _ = simplejpeg.decode_jpeg_header(data, **smallest)
        if across != down or (smaller_height, smaller_width) != (height * scale, width * scale):
            smallest = _at_least(width, height, min(scale * _MARGIN, 1.0))
            smaller_height, smaller_width, _, _ = simplejpeg.decode_jpeg_header(data, **smallest)
    _check_pixels(data, smaller_width, smaller_height, max_pixels)
    if into is not None and into.shape == (smaller_height, smaller_width, 3) and into.flags.c_contiguous:
        pixels = into
        simplejpeg.decode_jpeg(data, buffer=into.reshape(-1), **smallest)
    else:
        scratch = _SCRATCH.take(smaller_width * smaller_height * 3)
        pixels = simplejpeg.decode_jpeg(data, buffer=scratch, **smallest)
    # The decoder scales by k eighths and rounds up: the last row and column may cover less than a whole pixel.
    eighths = 8 * max(smaller_height, smaller_width) // max(width, height)
    return _Decoded(pixels, width * eighths / 8, height * eighths / 8, header.orientation)


@functools.lru_cache(256)
def _scales(width: int, height: int, size: int, fit: Fit, share: float) -> tuple[float, float]:
    """Return the horizontal and vertical scale from what is cut out of an image to the result."""
    cut, made = _square(width, height, size, fit, CENTER, share)
    return made[0] / (cut[2] - cut[0]), made[1] / (cut[3] - cut[1])


def _at_least(width: int, height: int, scale: float) -> dict[str, int]:
    return {"min_height": math.ceil(height * scale - 1e-6), "min_width": math.ceil(width * scale - 1e-6)}


def _decode_other(data: bytes, max_pixels: int) -> _Decoded:
    if data.startswith(_PNG):
        _check_png(data)
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"expected one of {', '.join(FORMATS)}") from None
    with opened as file:
        _check_pixels(data, *file.size, max_pixels)
        file.load()
        if file.format == "PNG":
            _scale_clear(file, depth=data[24])
        return _Decoded(_rgb(file), *file.size, _orientation(file.getexif))


def check_whole(data: bytes) -> None:
    """Find most truncated files, and damaged PNGs, without decoding them.

    Raises:
        InvalidRecord: ``undecodable``.
    """
    try:
        if data.startswith(_PNG):
            _check_png(data)
        elif data.startswith(_JPEG) and data.find(_END, data.find(_SCAN)) < 0:
            raise ValueError("JPEG is truncated")
    except ValueError as error:
        raise _reason(data, error) from error


def _check_png(data: bytes) -> None:
    """Raise ``ValueError`` for a PNG with a damaged or missing chunk; Pillow does not verify checksums."""
    place = len(_PNG)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if data[end : end + 4] != zlib.crc32(data[place + 4 : end]).to_bytes(4):
            raise ValueError(f"PNG chunk {data[place + 4 : place + 8]!r} is damaged")
        if data[place + 4 : place + 8] == b"IEND":
            return
        place = end + 4
    raise ValueError("PNG is truncated")


def _scale_clear(file: Image.Image, depth: int) -> None:
    """Convert the color that stands for transparent (tRNS) to 8 bits, as Pillow does with pixels."""
    clear = file.info.get("transparency")
    if file.mode == "L" and isinstance(clear, int) and depth < 8:
        file.info["transparency"] = clear * 255 // (2**depth - 1)
    elif file.mode == "RGB" and isinstance(clear, tuple) and depth == 16:
        file.info["transparency"] = tuple(part >> 8 for part in clear)


def _rgb(file: Image.Image) -> Image.Image:
    """Convert to 8 bits of red, green and blue, with transparency over white."""
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
        deep = np.asarray(file)
        # Pillow reduces 16-bit colors to their upper byte: treat grays alike.
        gray = (deep >> 8).astype(np.uint8)
        clear = file.info.get("transparency")
        if clear is not None:
            gray[deep == clear] = 255
        return Image.fromarray(gray).convert("RGB")
    if file.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {file.mode} have no known range")
    if file.mode == "CMYK" and "adobe" not in file.info:
        # Pillow treats every CMYK file as one of Adobe's, which store 255 − ink and have a marker (ITU-T T.872, 6.5).
        return ImageChops.invert(file).convert("RGB")
    if not file.has_transparency_data:
        return file.convert("RGB")
    layered = file if file.mode == "RGBA" else file.convert("RGBA")
    white = Image.new("RGB", layered.size, (255, 255, 255))
    white.paste(layered, mask=layered.getchannel("A"))
    return white


def _square(
    width: float, height: float, size: int, fit: Fit, crop: tuple[float, float], share: float
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Return the box to cut out of an image (left, top, right, bottom) and the (width, height) to resize it to."""
    if fit == "crop":
        side = min(width, height) * share
        if abs(side - size) < 0.5:  # whole pixels, not resampled
            side = min(size, width, height)
        left, top = (width - side) * crop[0], (height - side) * crop[1]
        if side == size:
            left, top = round(left), round(top)
        return (left, top, left + side, top + side), (size, size)
    whole = (0.0, 0.0, float(width), float(height))
    if fit == "pad":
        longer = max(width, height)
        return whole, (max(1, round(size * width / longer)), max(1, round(size * height / longer)))
    return whole, (size, size)


def _place(
    square: np.ndarray, decoded: _Decoded, fit: Fit, crop: tuple[float, float], share: float, flip: bool
) -> None:
    """Place a decoded image in the result; it is turned upright last, when it is small."""
    size = len(square)
    swap, flip_rows, flip_columns = _UPRIGHT.get(decoded.orientation, _UPRIGHT[1])
    x, y = crop
    x, y = 1 - x if flip_columns else x, 1 - y if flip_rows else y
    if swap:
        x, y = y, x
    cut, made = _square(decoded.width, decoded.height, size, fit, (x, y), share)
    pixels = _resample(decoded.image, cut, made)
    if swap:
        pixels = pixels.swapaxes(0, 1)
    if flip_rows or flip_columns != flip:
        pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns != flip else 1]
    if pixels is square:
        return
    height, width = pixels.shape[:2]
    if (height, width) != (size, size):
        square[...] = _GRAY
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = pixels


def _resample(
    image: np.ndarray | Image.Image, cut: tuple[float, float, float, float], made: tuple[int, int]
) -> np.ndarray:
    """Cut a box out of an image and resize it; the result may be a view of the image."""
    if (cut[2] - cut[0], cut[3] - cut[1]) == made:
        left, top, right, bottom = map(int, cut)
        if isinstance(image, np.ndarray):
            return image if image.shape[:2] == (bottom, right) == made[::-1] else image[top:bottom, left:right]
        whole = (right - left, bottom - top) == image.size
        return np.asarray(image if whole else image.crop((left, top, right, bottom)))
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return np.asarray(image.resize(made, Image.Resampling.BICUBIC, box=cut, reducing_gap=_REDUCING_GAP))
