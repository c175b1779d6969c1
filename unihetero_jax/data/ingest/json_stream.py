"""Read JSON files of many records, an array or a record per line, one record at a time.

An array of a gigabyte would take ten as Python objects, so it is scanned once for the positions of its records; workers
then read a stretch of bytes each.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from unihetero_jax.data.ingest.importer import Refused
from unihetero_jax.data.ingest.inputs import MOST_TEXT_BYTES, decode_text, open_text
from unihetero_jax.errors import UsageError

Layout = Literal["array", "lines"]

_CHUNK = 1 << 22
_TRIED_LINES = 20
_SPACE = re.compile(r"[ \t\n\r]*")
# Where records end can be found whatever their numbers: Python refuses an integer of over 4,300 digits.
_scanner = json.JSONDecoder(parse_int=str)


class Found(NamedTuple):
    """A record: its bytes ``start`` to ``stop`` in the file, its line from 1, and they; None of a line too long."""

    start: int
    stop: int
    line: int
    data: bytes | None


def parse(data: bytes) -> Any:
    """Parse JSON.

    Raises:
        Refused: The bytes are not JSON in UTF-8.
    """
    text = decode_text(data)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Refused("invalid_json", f"{error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise Refused("invalid_json", "nested too deep") from error
    except ValueError as error:
        raise Refused("invalid_json", "an integer of more than 4,300 digits") from error


def layout(path: str | os.PathLike[str]) -> Layout:
    """Return whether a file is an array of records or has one record per line.

    Raises:
        UsageError: It is neither, or cannot be read.
    """
    with open_text(path) as file:
        start, head = file.tell(), b""
        while not head and (chunk := file.read(_CHUNK)):
            head = chunk.lstrip()
        if head.startswith(b"["):
            return "array"
        # The first line may be bad; of one object over several lines most are.
        tried = [_is_object(found) for found in itertools.islice(_lines(file, start, 1), _TRIED_LINES)]
    if not tried or not (tried[0] or 2 * sum(tried) >= len(tried)):
        raise UsageError(f"{path}: expected a JSON array of records, or a record (a JSON object) on each line")
    return "lines"


def _is_object(found: Found) -> bool:
    try:
        return found.data is not None and isinstance(parse(found.data), dict)
    except Refused:
        return False


def scan(path: str | os.PathLike[str], kind: Layout) -> Iterator[Found]:
    """Yield the records of a file, in order, with a few megabytes of it in memory.

    Raises:
        UsageError: An array is broken or truncated, or something follows it; the message names the place.
    """
    with open_text(path) as file:
        yield from _lines(file, file.tell(), 1) if kind == "lines" else _Array(Path(path), file, 1).records(whole=True)


def read(
    path: str | os.PathLike[str], kind: Layout, start: int, stop: int, line: int
) -> Iterator[tuple[int, Any | Refused]]:
    """Yield line and content of the records between two positions from `scan`; ``Refused`` in the place of a bad one.

    Raises:
        UsageError: The file has changed since it was scanned, or cannot be read.
    """
    with open_text(path) as file:
        file.seek(start)
        records = _lines(file, start, line) if kind == "lines" else _Array(Path(path), file, line).records(whole=False)
        for found in itertools.takewhile(lambda found: found.start < stop, records):
            try:
                if found.data is None:
                    raise Refused("record_too_large", f"a line of more than {MOST_TEXT_BYTES >> 20} MiB")
                yield found.line, parse(found.data)
            except Refused as refused:
                yield found.line, refused


def _lines(file: BinaryIO, start: int, number: int) -> Iterator[Found]:
    """Yield the lines that are not blank."""
    file.seek(start)
    while line := file.readline(MOST_TEXT_BYTES):
        whole, last = True, line
        while not last.endswith(b"\n") and (last := file.readline(MOST_TEXT_BYTES)):
            whole = False
        stop = file.tell()
        if line.strip():
            yield Found(start, stop, number, line if whole else None)
        start, number = stop, number + 1


class _Array:
    """An array from some record on.

    In Latin-1 every byte is a character, so that positions in the text are positions in the file. JSON's own characters
    are ASCII, which no byte of a longer UTF-8 character resembles.
    """

    def __init__(self, path: Path, file: BinaryIO, line: int):
        self._path = path
        self._file = file
        self._base, self._line = file.tell(), line
        self._text, self._at = "", 0

    def records(self, whole: bool) -> Iterator[Found]:
        """Yield the records to the end; those of the ``whole`` array, or from the place of one on."""
        if whole:
            self._next("an array")
            self._move(self._at + 1)
        empty = whole and self._next("a record") == "]"
        while not empty:
            self._next("a record")
            stop = self._record_end()
            start, data = self._at, self._text[self._at : stop].encode("latin-1")
            yield Found(self._base + start, self._base + stop, self._line, data)
            self._move(stop)
            sign = self._next("a comma or the array's end")
            if sign == "]":
                break
            if sign != ",":
                raise self._error(f"expected a comma between two records, got {sign!r}")
            self._move(self._at + 1)
        self._move(self._at + 1)
        if self._next(""):
            raise self._error("text behind the array's end: expected one array, or a record on each line")

    def _next(self, expected: str) -> str:
        """Return the next character that is no space; empty at the end of the file, if nothing is expected."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._move(space.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._extend():
                if expected:
                    raise self._error(f"the file ends where {expected} was expected")
                return ""

    def _record_end(self) -> int:
        """Return the position behind the record that starts here."""
        while True:
            size = len(self._text) - self._at
            try:
                length = _scanner.raw_decode(self._text, self._at)[1] - self._at
                # A number may go on in what is not read yet.
                if length < size or self._text[-1] in '}]"' or not self._extend():
                    return self._at + length
            except (ValueError, RecursionError) as error:
                if size < MOST_TEXT_BYTES and self._extend():
                    continue
                what = getattr(error, "msg", "nested too deep")
                if size >= MOST_TEXT_BYTES:
                    what = f"it is damaged, or longer than {MOST_TEXT_BYTES >> 20} MiB"
                raise self._error(f"a record that is not JSON: {what}") from error

    def _extend(self) -> bool:
        """Read on, and forget what is before the present place."""
        self._text, self._base, self._at = self._text[self._at :], self._base + self._at, 0
        # Doubled, so that a long record is not parsed again for every chunk of it.
        more = self._file.read(max(_CHUNK, len(self._text)))
        self._text += more.decode("latin-1")
        return bool(more)

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _error(self, what: str) -> UsageError:
        return UsageError(f"{self._path}, line {self._line:,} (byte {self._base + self._at:,}): {what}")
