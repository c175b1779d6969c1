"""Picture files in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from unihetero_jax.errors import UsageError


def load_picture(path: Path, image_size: int) -> np.ndarray:
    """A picture file of any size and mode as [image_size, image_size, 3] uint8; what is transparent becomes white.

    Raises:
      UsageError: the file cannot be read, or holds no picture.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            elif picture.mode.startswith("I"):
                # Pillow would cut 16-bit values off at 255.
                picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
            picture = picture.convert("RGB")
            if picture.size != (image_size, image_size):
                picture = picture.resize((image_size, image_size), Image.Resampling.BICUBIC)
            return np.asarray(picture)
    except Image.UnidentifiedImageError as error:
        raise UsageError(f"--image={path}: no picture that can be read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--image={path}: cannot be read: {reason}") from error


def is_picture_name(path: Path) -> bool:
    """Whether the name of a file ends like that of a picture."""
    return path.suffix.lower() in Image.registered_extensions()


def save_picture(image: np.ndarray, path: Path) -> None:
    """Writes [H, W, 3] uint8 in the format that the file's name asks for, PNG when it asks for none.

    Raises:
      UsageError: the file cannot be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower(), "PNG")
    try:
        Image.fromarray(image).save(path, format=kind)
    except (OSError, KeyError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--out={path}: cannot be written: {reason}") from error
