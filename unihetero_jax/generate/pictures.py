"""Read and write picture files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from unihetero_jax.data.records.images import Fit, decode
from unihetero_jax.errors import UsageError

# Modes that PNG stores as they are; the pipeline handles their transparency and depth.
_LOSSLESS = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def load_picture(path: Path, image_size: int) -> np.ndarray:
    """A picture file as [image_size, image_size, 3] uint8, decoded as in training: stretched, over white.

    Raises:
      UsageError: the file cannot be read, or holds no picture.
    """
    try:
        with Image.open(path) as opened:
            return square(opened, image_size)
    except Image.UnidentifiedImageError as error:
        raise UsageError(f"--image={path}: no picture that can be read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--image={path}: cannot be read: {reason}") from error


def square(picture: Image.Image, size: int, fit: Fit = "stretch") -> np.ndarray:
    """A picture of any size and mode as [size, size, 3] uint8, decoded as in training.

    Args:
      picture: the picture.
      size: pixels per side.
      fit: how it becomes square.

    Raises:
      InvalidRecord: it cannot be decoded.
    """
    upright = ImageOps.exif_transpose(picture)
    if upright.mode not in _LOSSLESS:
        upright = upright.convert("RGB")
    file = io.BytesIO()
    upright.save(file, "PNG", compress_level=1)
    return decode(file.getvalue(), size, fit=fit)


def is_picture_name(path: Path) -> bool:
    """Whether a file has the suffix of a picture."""
    return path.suffix.lower() in Image.registered_extensions()


def save_picture(image: np.ndarray, path: Path) -> None:
    """Write [H, W, 3] uint8 in the format of the file's suffix; PNG without one.

    Raises:
      UsageError: the file cannot be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower(), "PNG")
    try:
        Image.fromarray(image).save(path, format=kind)
    except (OSError, KeyError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--out={path}: cannot be written: {reason}") from error
