"""Encoded images → pixels of one size, whatever files people keep: bounded, silent, and never a wrong picture.

JPEG is decoded by libjpeg-turbo (``simplejpeg``), at a fraction of its size where less is wanted; what that cannot, and
every other format, by Pillow. Both release the GIL. A file is judged by what it says of itself before it is decoded.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageChops, UnidentifiedImageError

from unihetero_jax.data.records.buffers import Scratch
from unihetero_jax.data.records.invalid import InvalidRecord

Fit = Literal["stretch", "crop", "pad"]
FITS: tuple[Fit, ...] = ("stretch", "crop", "pad")
MAX_PIXELS = 50_000_000
CENTER = (0.5, 0.5)

# Of Pillow's. None that runs a program (EPS), and not TIFF, whose library writes on the terminal what it dislikes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "AVIF")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_SCAN = b"\xff\xda"
# Bytes before the first scan: beyond so many there is a description of the one picture, such as EXIF with a thumbnail.
_MOST_ALIKE = 2048
_ORIENTATION = 0x0112
# What to do to stored pixels so that they stand upright: swap the axes, then reverse rows, then columns (EXIF 2.3).
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
# A JPEG is decoded at least this much larger than wanted, unless its decoder hits the size exactly: the cosine
# transform at the very size before leaves 3 times the error against the full image (1.6 grey levels, and 0.5).
_MARGIN = 1.25
# Resizing by more than this twice over starts with a mean of whole blocks; 4 times as fast, no visible difference.
_REDUCING_GAP = 2.0
# Every scan goes over all pixels, however short it is in the file; encoders use about ten.
_MOST_SCANS = 32
_GREY = 127
_SCRATCH = Scratch()

# Pillow describes odd files in warnings and log lines; here the exception or the pixels say it.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


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
    """The first frame of an encoded image, upright, over white, in 8 bits.

    Args:
      data: a file's bytes; its format is told from them.
      size: pixels a side. An image that has it already is not resampled; all others are antialiased (bicubic).
      fit: ``stretch`` both sides; cut out a square (``crop``); or keep all of it in a grey square (``pad``).
      crop: where the square of ``crop`` lies, from (0, 0), left and top, to (1, 1), right and bottom.
      share: its side, as a part of the image's shorter side. 224 / 256 cuts 224 pixels out of 256 without resampling.
      flip: mirrored, left to right, after that.
      max_pixels: that may be decoded; memory stays under 20 bytes for each. Of a larger JPEG, less may do.

    Raises:
      InvalidRecord: ``undecodable``: no image, a truncated or a damaged one; ``too_large``: of too many pixels.
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
    """``decode`` with the array that takes the pixels: one copy less. If it raises, anything may be in there."""
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
    """The first frame of an encoded image, upright, over white, in 8 bits, its shorter side ``side`` pixels.

    Args:
      data: a file's bytes; its format is told from them.
      side: pixels of the shorter side; the longer follows.
      max_pixels: that may be decoded.

    Raises:
      InvalidRecord: as for ``decode``.
    """
    try:
        # What a square of that side needs is what the whole needs: both are scaled alike.
        jpeg = data.startswith(_JPEG)
        decoded = _decode_jpeg(data, side, "crop", 1.0, max_pixels) if jpeg else _decode_other(data, max_pixels)
        scale = side / min(decoded.width, decoded.height)
        made = (max(side, round(decoded.width * scale)), max(side, round(decoded.height * scale)))
        pixels = _resample(decoded.picture, (0.0, 0.0, decoded.width, decoded.height), made)
        swap, flip_rows, flip_columns = _UPRIGHT.get(decoded.orientation, _UPRIGHT[1])
        pixels = pixels.swapaxes(0, 1) if swap else pixels
        return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1].copy()
    except (InvalidRecord, MemoryError):
        raise
    except Exception as error:
        raise _reason(data, error) from error


def _reason(data: bytes, error: Exception) -> InvalidRecord:
    """What a decoder raises on bytes that it does not expect is anything; as the counter that it falls under."""
    if isinstance(error, Image.DecompressionBombError):
        return InvalidRecord("too_large", f"image of {len(data)} bytes: {error}")
    return InvalidRecord("undecodable", f"image of {len(data)} bytes cannot be decoded: {error}")


def _check_pixels(data: bytes, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        what = f"image of {len(data)} bytes has {width} x {height} pixels to decode, more than {max_pixels}"
        raise InvalidRecord("too_large", what)


class _Decoded(NamedTuple):
    """A picture as it is stored, until this thread decodes the next; what it shows, in its own pixels."""

    picture: np.ndarray | Image.Image
    width: float
    height: float
    orientation: int


class _JpegHeader(NamedTuple):
    """What a JPEG says before its first scan.

    ``size``: height and width; None where turbojpeg cannot read it. ``buffered``: all of the image is held in memory,
    at any scale.
    """

    size: tuple[int, int] | None
    buffered: bool
    orientation: int


def _jpeg_header(data: bytes) -> _JpegHeader:
    """Reads the segments before the first scan."""
    scan = data.find(_SCAN, 0, _MOST_ALIKE)
    if 0 < scan <= len(data) - 4:
        try:
            return _known_header(data[: scan + 2 + (data[scan + 2] << 8 | data[scan + 3])])
        except ValueError:  # what was found lies within another segment, such as a thumbnail
            pass
    return _read_header(data)


def _read_header(data: bytes) -> _JpegHeader:
    """The segments (ITU-T T.81, B.1; the EXIF in APP1); raises ``ValueError`` where no scan follows them."""
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


# What one program wrote in one size begins alike, and is read once.
_known_header = functools.lru_cache(256)(_read_header)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # of a subsampling that turbojpeg has no name for, or no JPEG at all
        return None
    return None if colors in ("CMYK", "YCCK") else (height, width)


def _exif(segment: bytes) -> Image.Exif:
    fields = Image.Exif()
    fields.load(segment)
    return fields


def _orientation(read: Callable[[], Image.Exif]) -> int:
    """1 where it is unknown, or the EXIF is broken: the picture is not."""
    try:
        return int(read().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error, EOFError, KeyError, OSError):
        return 1


def _decode_jpeg(
    data: bytes, size: int, fit: Fit, share: float, max_pixels: int, into: np.ndarray | None = None
) -> _Decoded:
    """Decodes into an array that has just the size that comes out, or else into one that the next picture takes."""
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
        room = _SCRATCH.take(smaller_width * smaller_height * 3)
        pixels = simplejpeg.decode_jpeg(data, buffer=room, **smallest)
    # Of k eighths, rounded up: the last row and column may be of less than a whole pixel.
    eighths = 8 * max(smaller_height, smaller_width) // max(width, height)
    return _Decoded(pixels, width * eighths / 8, height * eighths / 8, header.orientation)


@functools.lru_cache(256)
def _scales(width: int, height: int, size: int, fit: Fit, share: float) -> tuple[float, float]:
    """Of what is cut out of an image, to what it is given: horizontal and vertical."""
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


def _check_png(data: bytes) -> None:
    """Raises ``ValueError`` for a PNG with a chunk that is damaged or missing; Pillow does not look at pixels' sums."""
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
    """The grey or colour that stands for transparent (tRNS) in 8 bits, as Pillow gives pixels, not in the file's."""
    clear = file.info.get("transparency")
    if file.mode == "L" and isinstance(clear, int) and depth < 8:
        file.info["transparency"] = clear * 255 // (2**depth - 1)
    elif file.mode == "RGB" and isinstance(clear, tuple) and depth == 16:
        file.info["transparency"] = tuple(part >> 8 for part in clear)


def _rgb(file: Image.Image) -> Image.Image:
    """8 bits of red, green and blue; what is transparent is white."""
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
        deep = np.asarray(file)
        # Pillow gives colours of 16 bits by their upper byte: greys are treated alike.
        grey = (deep >> 8).astype(np.uint8)
        clear = file.info.get("transparency")
        if clear is not None:
            grey[deep == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if file.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {file.mode} have no known range")
    if file.mode == "CMYK" and "adobe" not in file.info:
        # Pillow takes every file for one of Adobe's, which hold 255 − ink, as their marker tells (ITU-T T.872, 6.5).
        return ImageChops.invert(file).convert("RGB")
    if not file.has_transparency_data:
        return file.convert("RGB")
    seen = file if file.mode == "RGBA" else file.convert("RGBA")
    white = Image.new("RGB", seen.size, (255, 255, 255))
    white.paste(seen, mask=seen.getchannel("A"))
    return white


def _square(
    width: float, height: float, size: int, fit: Fit, crop: tuple[float, float], share: float
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """What is cut out of an image (left, top, right, bottom), and the (width, height) that it is given."""
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
    """Lays a decoded picture out in the square that is wanted; turned upright last, when it is small."""
    size = len(square)
    swap, flip_rows, flip_columns = _UPRIGHT.get(decoded.orientation, _UPRIGHT[1])
    x, y = crop
    x, y = 1 - x if flip_columns else x, 1 - y if flip_rows else y
    if swap:
        x, y = y, x
    cut, made = _square(decoded.width, decoded.height, size, fit, (x, y), share)
    pixels = _resample(decoded.picture, cut, made)
    if swap:
        pixels = pixels.swapaxes(0, 1)
    if flip_rows or flip_columns != flip:
        pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns != flip else 1]
    if pixels is square:
        return
    height, width = pixels.shape[:2]
    if (height, width) != (size, size):
        square[...] = _GREY
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = pixels


def _resample(
    picture: np.ndarray | Image.Image, cut: tuple[float, float, float, float], made: tuple[int, int]
) -> np.ndarray:
    """What is cut out of a picture, in the size that is wanted; perhaps a view of it."""
    if (cut[2] - cut[0], cut[3] - cut[1]) == made:
        left, top, right, bottom = map(int, cut)
        if isinstance(picture, np.ndarray):
            return picture if picture.shape[:2] == (bottom, right) == made[::-1] else picture[top:bottom, left:right]
        whole = (right - left, bottom - top) == picture.size
        return np.asarray(picture if whole else picture.crop((left, top, right, bottom)))
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    return np.asarray(picture.resize(made, Image.Resampling.BICUBIC, box=cut, reducing_gap=_REDUCING_GAP))
