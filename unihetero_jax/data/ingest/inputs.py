"""Files of an input: those that patterns name, their sizes and texts, and images that a table names by their paths."""

from __future__ import annotations

import functools
import glob
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from unihetero_jax.data.ingest.importer import MAX_RECORD_MB, Refused, names, option
from unihetero_jax.errors import UsageError

# Of one line, cell or JSON record. Training takes 200,000 characters; parsed, JSON can take 20 times its bytes.
MOST_TEXT_BYTES = 1 << 24
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TRIED_IMAGES = 20
# Usual names of splits, and the part of each.
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "val", "valid", "validation", "dev", "eval"), "test"),
}


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


def open_text(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a text file for its bytes, after its byte order mark.

    Raises:
        UsageError: The file cannot be read, or is UTF-16 or UTF-32.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
        start = file.read(4)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        file.close()
        raise UsageError(f"{path} is not UTF-8 but UTF-16 or binary: convert it with `iconv -f utf-16 -t utf-8`")
    file.seek(len(_BYTE_ORDER_MARK) if start.startswith(_BYTE_ORDER_MARK) else 0)
    return file


def check_utf8(text: str) -> None:
    """Refuse a text with lone surrogates, which stand for bytes that are not UTF-8.

    Raises:
        Refused: There is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = text[error.start]
        what = "half of a surrogate pair"
        if "\udc80" <= character <= "\udcff":
            what = f"the byte 0x{ord(character) - 0xDC00:02x} (a Latin-1 file? `iconv -f latin1 -t utf-8` converts it)"
        raise Refused("invalid_utf8", f"not UTF-8 at character {error.start + 1}: {what}") from error


def decode_text(data: bytes) -> str:
    """Return the text of bytes in UTF-8.

    Raises:
        Refused: They are something else.
    """
    text = data.removeprefix(_BYTE_ORDER_MARK).decode(errors="surrogateescape")
    check_utf8(text)
    return text


@functools.lru_cache(64)
def _resolved(root: str) -> str:
    return os.path.join(os.path.realpath(root), "")


def find_image(roots: Sequence[str | os.PathLike[str]], name: str) -> Path:
    """Return the file of an image in the first of the folders that has it.

    The path comes with the data and must stay below its folder, through links too.

    Raises:
        Refused: The path leaves the folder, or the file does not exist.
    """
    if not name or "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise Refused("unsafe_path", f"the image {name!r} leaves its folder")
    for root in roots:
        file = Path(root) / name
        try:
            # Only a regular file: reading a pipe would block.
            if not stat.S_ISREG(file.stat().st_mode):
                continue
        except (OSError, ValueError):  # missing, or a name that is too long or cannot be encoded
            continue
        if not (true := os.path.realpath(file)).startswith(_resolved(os.fspath(root))):
            raise Refused("unsafe_path", f"the image {name!r} is a link out of {root}, to {true}: expected a copy")
        return file
    raise Refused("missing_image", f"there is no {name!r} under {', '.join(map(str, roots))}")


def roots_option() -> Any:
    """Declare the option ``image_roots``: folders that the images' paths are relative to."""
    text = "folder that the images' paths are relative to, or several separated by commas (default: each file's folder)"
    return option((), metavar="DIR", help=text, flag="image_root", parse=names)


def check_roots(roots: Sequence[str]) -> None:
    """Refuse folders of images that are not there.

    Raises:
        UsageError: One is missing.
    """
    for root in roots:
        if not Path(root).is_dir():
            raise UsageError(f"image_root={root}: no such directory")


def read_image(file: Path, max_bytes: int = MAX_RECORD_MB * 1_000_000) -> bytes:
    """Return the content of an image's file.

    Raises:
        Refused: The file cannot be read, is empty, or has more than ``max_bytes``.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            data = opened.read() if size <= max_bytes else b""
    except OSError as error:
        raise Refused("unreadable_image", f"{file}: {error.strerror}") from error
    if size > max_bytes:
        raise Refused("image_too_large", f"{file} has {size:,} bytes: expected at most --max_record_mb for the record")
    if not data:
        raise Refused("empty_image", f"{file} has no bytes")
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
