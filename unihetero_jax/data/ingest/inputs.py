"""Files of an input: those that patterns name, their sizes, and images that a table names by their paths."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from unihetero_jax.data.ingest.importer import Refused
from unihetero_jax.errors import UsageError

# An Example must stay below protobuf's 2 GB, and no photograph is as large as this.
MOST_IMAGE_BYTES = 1 << 28
_TRIED_IMAGES = 20


def expand(pattern: str) -> list[str]:
    """Return the files that a pattern with ``*``, ``?`` or ``[]`` matches, sorted; a plain path as it is."""
    return sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]


def file_size(path: str | os.PathLike[str], note: str = "") -> int:
    """Return the bytes of a file.

    Raises:
        UsageError: The file cannot be read; the message contains ``note``.
    """
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UsageError(f"cannot read {path}{note}: {error.strerror}") from error


def file_sizes(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Return JSON of files and their sizes, for the provenance of a dataset."""
    return [{"path": path, "bytes": file_size(path)} for path in paths]


def find_image(roots: Sequence[str | os.PathLike[str]], name: str) -> Path:
    """Return the file of an image in the first of the folders that has it.

    The path comes with the data and must stay below its folder; following a link that lies there is the user's choice.

    Raises:
        Refused: The path leaves the folder, or the file does not exist.
    """
    if not name or "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise Refused("unsafe_path", f"the image {name!r} leaves its folder")
    for root in roots:
        file = Path(root) / name
        try:
            # Only a regular file: reading a pipe would block.
            if stat.S_ISREG(file.stat().st_mode):
                return file
        except (OSError, ValueError):  # missing, or a name that is too long or cannot be encoded
            continue
    raise Refused("missing_image", f"there is no {name!r} under {', '.join(map(str, roots))}")


def read_image(file: Path) -> bytes:
    """Return the content of an image's file.

    Raises:
        Refused: The file cannot be read, is empty, or is too large.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_IMAGE_BYTES + 1)
    except OSError as error:
        raise Refused("unreadable_image", f"{file}: {error.strerror}") from error
    if not data:
        raise Refused("empty_image", f"{file} has no bytes")
    if len(data) > MOST_IMAGE_BYTES:
        raise Refused("image_too_large", f"{file} has more than {MOST_IMAGE_BYTES >> 20} MiB")
    return data


def try_images(source: str, rows: Iterable[Any], find: Callable[[Any], bool], expected: str) -> None:
    """Refuse a wrong folder of images at once, rather than every record after an hour.

    Args:
        source: File that names the images, for the message.
        rows: Its first rows.
        find: Returns whether the row has a usable image, False where it has none; raises ``Refused``.
        expected: What was expected, for the message.

    Raises:
        UsageError: None of the first images can be used.
    """
    missing: list[str] = []
    for row in rows:
        try:
            if find(row):
                return
        except Refused as refused:
            missing.append(str(refused))
        if len(missing) == _TRIED_IMAGES:
            break
    if missing:
        raise UsageError(
            f"{source}: of the first {len(missing)} images none could be used; the first: {missing[0]}; expected "
            f"{expected} to be the folder that these paths are relative to"
        )
