"""Read JSON files of many records, an array or a record per line, one record at a time.

An array of a gigabyte would take ten as Python objects, so it is scanned once for the positions of its records; workers
then read a stretch of bytes each.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from unihetero_jax.errors import UsageError

Layout = Literal["array", "lines"]

_CHUNK = 1 << 22
# Anything longer is a file of another kind, or one whose quotes do not match.
_LONGEST_RECORD = 1 << 26
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")
_decoder = json.JSONDecoder()


class Span(NamedTuple):
    """Position of a record, bytes ``start`` to ``stop``, and whether it mentions the word that was searched for."""

    start: int
    stop: int
    mentions: bool


def layout(path: str | os.PathLike[str]) -> Layout:
    """Return whether a file is an array of records or has one record per line.

    Raises:
        UsageError: It is neither, or cannot be read.
    """
    with _open(path) as file:
        file.seek(_first_byte(file))
        start = b""
        while not start and (chunk := file.read(_CHUNK)):
            start = chunk.lstrip()
        if start.startswith(b"["):
            return "array"
        line = (start + file.readline(_LONGEST_RECORD)).splitlines()[:1]
    try:
        if line and isinstance(json.loads(line[0]), dict):
            return "lines"
    except (ValueError, RecursionError):
        pass
    raise UsageError(f"{path}: expected a JSON array of records, or a record (a JSON object) on each line")


def scan(path: str | os.PathLike[str], kind: Layout, word: str) -> Iterator[Span]:
    """Yield the position of each record of a file, in order, with a few megabytes of it in memory.

    Args:
        path: The file.
        kind: Its layout.
        word: Word to search for in each record, such as ``'"image"'``.

    Raises:
        UsageError: An array is broken or truncated, or a record is longer than 64 MiB; the message names the place.
    """
    with _open(path) as file:
        yield from (_scan_array if kind == "array" else _scan_lines)(Path(path), file, word)


def read(path: str | os.PathLike[str], kind: Layout, start: int, stop: int) -> Iterator[Any]:
    """Yield the records between two positions from `scan`, and a `ValueError` in the place of invalid JSON.

    Bytes that are not UTF-8 become lone surrogates in their texts.

    Raises:
        UsageError: The file has changed since it was scanned, or cannot be read.
    """
    with _open(path) as file:
        file.seek(start)
        text = file.read(stop - start).decode("utf-8", "surrogateescape")
    if kind == "lines":
        for line in text.split("\n"):
            if line.strip(" \t\r"):
                try:
                    yield json.loads(line)
                except RecursionError:
                    yield ValueError("nested too deep")
                except ValueError as error:
                    yield error
        return
    at = 0
    while at < len(text):
        try:
            value, at = _decoder.raw_decode(text, at)
        except ValueError as error:
            raise UsageError(f"{path} has changed since it was scanned: byte {start:,} starts no record") from error
        yield value
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)


def _scan_array(path: Path, file: BinaryIO, word: str) -> Iterator[Span]:
    # In Latin-1 every byte is a character, so that positions in the text are positions in the file. JSON's own
    # characters are ASCII, which no byte of a longer UTF-8 character resembles.
    base = _first_byte(file)
    file.seek(base)
    text, at, count, after_record, opened = "", 0, 0, False, False

    def extend() -> bool:
        nonlocal text, at, base
        text, base, at = text[at:], base + at, 0
        # Doubled, so that a long record is not parsed again for every chunk of it.
        more = file.read(max(_CHUNK, len(text)))
        text += more.decode("latin-1")
        return bool(more)

    while True:
        at = _skip(text, at)
        if at == len(text):
            if not extend():
                raise UsageError(f"{path} ends after record {count}, at byte {base + at:,}, without the array's end")
            continue
        sign = text[at]
        if not opened:
            opened, at = True, at + 1
        elif sign == "]":
            break
        elif after_record:
            if sign != ",":
                raise UsageError(f"{path}: byte {base + at:,}, after record {count}: expected a comma, got {sign!r}")
            after_record, at = False, at + 1
        else:
            try:
                _, stop = _decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                if len(text) - at < _LONGEST_RECORD and extend():
                    continue
                what = getattr(error, "msg", "nested too deep")
                raise UsageError(f"{path}: record {count + 1}, at byte {base + at:,}, is not JSON: {what}") from error
            yield Span(base + at, base + stop, text.find(word, at, stop) >= 0)
            count, after_record, at = count + 1, True, stop


def _scan_lines(path: Path, file: BinaryIO, word: str) -> Iterator[Span]:
    sought = word.encode()
    start = _first_byte(file)
    file.seek(start)
    while line := file.readline(_LONGEST_RECORD + 1):
        if len(line) > _LONGEST_RECORD:
            raise UsageError(
                f"{path}: the line at byte {start:,} has more than {_LONGEST_RECORD >> 20} MiB: not a record"
            )
        if line.strip():
            yield Span(start, start + len(line), sought in line)
        start += len(line)


def _first_byte(file: BinaryIO) -> int:
    return len(_BYTE_ORDER_MARK) if file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK else 0


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
