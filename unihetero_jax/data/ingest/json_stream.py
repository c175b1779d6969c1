"""Read JSON files of many records, an array or a record per line, one record at a time.

An array of a gigabyte would take ten as Python objects, so it is scanned once for the positions of its records; workers
then read a stretch of bytes each.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from unihetero_jax.data.ingest.importer import UNIT_BYTES, Refused
from unihetero_jax.data.ingest.inputs import MOST_TEXT_BYTES, decode_text, open_text
from unihetero_jax.errors import UsageError

Layout = Literal["array", "lines"]

_CHUNK = 1 << 22
_TRIED_LINES = 20
# A guess: reading the size of every image before the work is distributed would cost as much as the work.
_IMAGE_BYTES = 100_000
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


def scan_object(path: str | os.PathLike[str]) -> Iterator[tuple[str, Found]]:
    """Yield the records of the arrays in a file of one JSON object, in order, each with the key of its array.

    Raises:
        UsageError: The file is something else, is broken or truncated, or has a key twice; the message names the place.
    """
    with open_text(path) as file:
        yield from _Array(Path(path), file, 1).members()


def stretches(records: Iterable[Found], has_image: Callable[[Found], bool]) -> list[dict[str, int]]:
    """Return JSON of consecutive parts for `read`, each about 64 MB when an image is counted as 100 kB.

    ``first`` is the number of a part's first record, from 0.
    """
    parts: list[dict[str, int]] = []
    weight = UNIT_BYTES
    for number, found in enumerate(records):
        if weight >= UNIT_BYTES:
            parts.append({"first": number, "start": found.start, "line": found.line})
            weight = 0
        parts[-1]["stop"] = found.stop
        weight += found.stop - found.start + _IMAGE_BYTES * has_image(found)
    return parts


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
    """An array from some record on, or an object of arrays.

    In Latin-1 every byte is a character, so that positions in the text are positions in the file. JSON's own characters
    are ASCII, which no byte of a longer UTF-8 character resembles.
    """

    def __init__(self, path: Path, file: BinaryIO, line: int):
        self._path = path
        self._file = file
        self._base, self._line = file.tell(), line
        self._text, self._at = "", 0

    def records(self, whole: bool) -> Iterator[Found]:
        """Yield the records to the end; those of the ``whole`` file, or from the place of one on."""
        yield from self._elements(whole)
        if whole and self._next(""):
            raise self._error("text behind the array's end: expected one array, or a record on each line")

    def members(self) -> Iterator[tuple[str, Found]]:
        """Yield the records of the arrays in the object that the file is, each with the key of its array."""
        keys: set[str] = set()
        sign = self._sign("{", "an object")
        if self._next("a key") == "}":
            sign = self._sign("}", "the object's end")
        while sign != "}":
            key = self._key()
            if key in keys:
                raise self._error(f"the key {key!r} is there twice")
            keys.add(key)
            self._sign(":", "a colon behind a key")
            if self._next("a value") == "[":
                yield from ((key, found) for found in self._elements(whole=True))
            else:
                self._move(self._record_end())
            sign = self._sign(",}", "a comma or the object's end")
        if self._next(""):
            raise self._error("text behind the object's end: expected one object")

    def _key(self) -> str:
        self._next("a key")
        stop = self._record_end()
        try:
            key = parse(self._text[self._at : stop].encode("latin-1"))
        except Refused as refused:
            raise self._error(f"a key that is not JSON: {refused}") from refused
        if not isinstance(key, str):
            raise self._error(f"expected a key, got {key!r}"[:200])
        self._move(stop)
        return key

    def _sign(self, allowed: str, expected: str) -> str:
        """Return the next character, which is one of the allowed, and move behind it."""
        if (sign := self._next(expected)) not in allowed:
            raise self._error(f"expected {expected}, got {sign!r}")
        self._move(self._at + 1)
        return sign

    def _elements(self, whole: bool) -> Iterator[Found]:
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
            if self._sign(",]", "a comma between two records") == "]":
                return
        self._move(self._at + 1)

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
