"""Images that someone's table names by their paths."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from unihetero_jax.data.ingest.captions import Refused

# An Example must stay below protobuf's 2 GB; and no photograph is that large.
_MOST_BYTES = 1 << 28


def find_image(roots: Sequence[str | os.PathLike[str]], name: str) -> Path:
    """The file of an image, in the first of the folders that has it.

    The path comes with the data and must stay below its folder; a link that the user put there is the user's business.

    Raises:
        Refused: It leaves the folder, or is not there.
    """
    if not name or "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise Refused("unsafe_path", f"the image {name!r} leaves its folder")
    for root in roots:
        file = Path(root) / name
        try:
            # A pipe would be waited for.
            if stat.S_ISREG(file.stat().st_mode):
                return file
        except (OSError, ValueError):  # not there, too long a name, not encodable
            continue
    raise Refused("missing_image", f"there is no {name!r} under {', '.join(map(str, roots))}")


def read_image(file: Path) -> bytes:
    """The content of an image's file.

    Raises:
        Refused: It cannot be read, has no bytes, or too many.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise Refused("unreadable_image", f"{file}: {error.strerror}") from error
    if not data:
        raise Refused("empty_image", f"{file} has no bytes")
    if len(data) > _MOST_BYTES:
        raise Refused("image_too_large", f"{file} has more than {_MOST_BYTES >> 20} MiB")
    return data
