"""Files of every kind that people keep pictures in, made without the code that reads them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

# Colour types of PNG (ISO/IEC 15948, 11.2.2).
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """[height, width, 3] uint8: smooth, so that JPEG keeps it, and different at every place and in every channel."""
    y, x = np.mgrid[:height, :width]
    waves = [
        120 + 60 * np.sin(3 * x / width + shift) + 60 * np.cos(2 * y / height + shift)
        for shift in range(seed, seed + 3)
    ]
    return np.clip(np.stack(waves, -1), 0, 255).astype(np.uint8)


def encoded(picture: np.ndarray | Image.Image, kind: str = "png", **options: Any) -> bytes:
    """A file of a picture, as Pillow writes it."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    values: np.ndarray, kind: int, depth: int = 8, extra: bytes = b"", size: tuple[int, int] | None = None
) -> bytes:
    """A PNG from the specification alone; ``values`` are [height, width] or [height, width, channels]."""
    height, width = size or values.shape[:2]
    rows = values.reshape(values.shape[0], -1)
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    elif depth == 8:
        lines = [row.astype(np.uint8).tobytes() for row in rows]
    else:
        bits = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -depth:] for row in rows]
        lines = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def with_exif_orientation(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with an EXIF segment that says how it was held."""
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]
