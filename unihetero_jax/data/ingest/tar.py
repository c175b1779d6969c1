"""The members of a tar file, from any member on, without extracting anything.

``tarfile`` ends silently at a damaged or truncated header, ignores a malformed extended header, and cannot begin in the
middle. Formats: POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU; a compressed tar is read from its start.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple, cast

_BLOCK, _CHUNK = 512, 1 << 20
_REGULAR = frozenset((b"0", b"\0", b"7"))
# Links, devices, directories and pipes have no content, whatever their size field.
_EMPTY = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_LONG_NAME, _PAX, _GLOBAL = b"L", b"x", b"g"
# A longer name or set of attributes is not a header that anyone wrote.
_MOST_HEADER = 1 << 20


class BrokenTar(ValueError):
    """The file is damaged, truncated, or not a tar, from here on."""


class Member(NamedTuple):
    """A regular file in a tar: its name, the positions of its header and content, and its size."""

    name: str
    header: int
    offset: int
    size: int


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is gzip, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def open_tar(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a tar file, decompressing it where it is gzip.

    Raises:
        OSError: The file cannot be read.
    """
    return cast(IO[bytes], gzip.open(path)) if is_compressed(path) else open(path, "rb")


def members(file: IO[bytes], start: int = 0, stop: int | None = None) -> Iterator[Member]:
    """Yield the regular files of a tar whose headers begin from ``start`` on and before ``stop``.

    Args:
        file: File from `open_tar`. It may be read between two members.
        start: Position of a header.
        stop: None for the end of the tar.

    Raises:
        BrokenTar: A header is damaged, or the file ends too early; the members before are intact.
    """
    position = header = start
    name: bytes | None = None
    size: int | None = None
    while stop is None or header < stop:
        block = _read(file, position, _BLOCK, "a header or the mark of the end")
        if not block.strip(b"\0"):
            _check_end(file, position)
            return
        kind, own_size = _parse(block, position)
        content = position + _BLOCK
        if kind in (_LONG_NAME, _PAX, _GLOBAL):
            if own_size > _MOST_HEADER:
                raise BrokenTar(f"a name of {own_size:,} bytes at byte {position:,}")
            data = _read(file, content, own_size, "a long name")
            if kind == _LONG_NAME:
                name = data.rstrip(b"\0")
            elif kind == _PAX:
                name, size = _pax(data, name, size, position)
            elif _pax(data, None, None, position) != (None, None):
                raise BrokenTar(f"a header at byte {position:,} names all members behind it, which is not supported")
            position = content + _padded(own_size)
            continue
        true_size = 0 if kind in _EMPTY else own_size if size is None else size
        following = content + _padded(true_size)
        if kind in _REGULAR:
            full = _name(block) if name is None else name
            if not full.endswith(b"/"):
                yield Member(full.decode("utf-8", "surrogateescape"), header, content, true_size)
        elif kind == b"S":
            raise BrokenTar(f"a sparse file at byte {position:,}, which is not supported")
        position = header = following
        name = size = None


def verify_gzip(path: str | os.PathLike[str]) -> None:
    """Read a gzip file to its end, where its checksum is.

    Raises:
        BrokenTar: It is damaged.
    """
    with open_tar(path) as file:
        position = 0
        while size := len(_read(file, position, _CHUNK, "", whole=False)):
            position += size


def _check_end(file: IO[bytes], position: int) -> None:
    """Refuse data behind the mark of the end, which ``tarfile`` and ``tar`` leave out."""
    while data := _read(file, position, _CHUNK, "", whole=False):
        if rest := data.lstrip(b"\0"):
            start = position + len(data) - len(rest)
            raise BrokenTar(
                f"there is more from byte {start:,} on, behind the mark of the end; tars are joined with `tar -A`"
            )
        position += len(data)


def read_member(file: IO[bytes], member: Member) -> bytes:
    """Return the content of a member.

    Raises:
        BrokenTar: The file ends before it.
    """
    return _read(file, member.offset, member.size, repr(member.name))


def _read(file: IO[bytes], position: int, size: int, what: str, whole: bool = True) -> bytes:
    try:
        if file.tell() != position:
            file.seek(position)
        data = file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BrokenTar(f"the gzip stream is broken around byte {position:,}: {error}") from error
    if len(data) == size or not whole:
        return data
    # Also where it ends between two members: a complete archive ends with blocks of zeros.
    raise BrokenTar(f"the file ends at byte {position + len(data):,}, where {what} was expected")


def _parse(block: bytes, position: int) -> tuple[bytes, int]:
    """Return kind and size of a header.

    Raises:
        BrokenTar: Its checksum is wrong, or it has no size.
    """
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BrokenTar(f"no tar header at byte {position:,}: {error}") from error
    if header.size < 0:
        raise BrokenTar(f"no tar header at byte {position:,}: a size of {header.size:,}")
    return block[156:157], header.size


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    # GNU stores other fields in the place of the prefix, and has a space after its magic.
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(data: bytes, name: bytes | None, size: int | None, position: int) -> tuple[bytes | None, int | None]:
    """Parse the name and size of the next member from an extended header of lines ``LENGTH KEY=VALUE``."""
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            raise BrokenTar(f"an extended header at byte {position:,} is malformed")
        record, data = data[len(length) + 1 : int(length) - 1], data[int(length) :]
        key, _, value = record.partition(b"=")
        if key.startswith(b"GNU.sparse."):
            raise BrokenTar(f"a sparse file at byte {position:,}, which is not supported")
        if key == b"path":
            name = value
        elif key == b"size":
            if not value.isdigit():
                raise BrokenTar(f"an extended header at byte {position:,} is malformed")
            size = int(value)
    return name, size


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
