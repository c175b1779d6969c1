"""Files that are whole or absent, and files of rows, whose last one may be half written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from unihetero_jax.errors import UsageError


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write that a reader, or a crash at any moment, sees complete or not at all.

    Yields:
        A file under another name in the same folder, which is renamed at the end, or removed after an error.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Temporary files can be read by their owner only; what we write is shared.
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old content or the new, never a part.

    Text is stored as UTF-8.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def json_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, one a line; none if it is not there.

    Lines that are no objects are left out: one that is being written, or that a crash has torn.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [row for line in lines if (row := _object(line)) is not None]


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def json_object(path: Path, content: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
      path: of the file.
      content: what it should hold, for the error message.

    Raises:
      UsageError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: holds no JSON object: expected {content}")
    return found
