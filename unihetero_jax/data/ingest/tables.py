"""Read tables of any length, CSV, TSV, JSONL or Parquet, one stretch at a time."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from unihetero_jax.errors import UsageError

Row = Mapping[str, Any]
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
FORMATS = (*_DELIMITERS, *_JSON_LINES, ".parquet")
# A longer cell is due to a quotation mark that was never closed.
_MOST_CELL = 1 << 24
# Rows of a stretch: their images are estimated at 64 MB.
_ROWS = 3000
_UNIT_BYTES = 64_000_000
_BATCH_ROWS = 64


class BadRow(NamedTuple):
    """A row that cannot be read, with the counter that it falls under."""

    reason: str
    detail: str


class Table:
    """One table.

    Args:
        path: The file.

    Raises:
        UsageError: Its name has no known suffix.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        self._format = self._path.suffix.lower()
        if self._format not in FORMATS:
            raise UsageError(f"{path}: expected a table whose name ends in {', '.join(FORMATS)}")

    def columns(self) -> list[str]:
        """Return the names of the columns; of JSONL, those of the first row.

        Raises:
            UsageError: The file cannot be read in the format of its name, or has no column.
        """
        if self._format == ".parquet":
            return list(self._parquet().schema_arrow.names)
        with self._open() as file:
            if self._format in _JSON_LINES:
                first = next((row for _, row in self._json_rows(file, 0, None)), None)
                found = [] if first is None or isinstance(first, BadRow) else list(first)
            else:
                found = self._header(file)
        if not found:
            raise UsageError(f"{self._path} names no columns; expected a first row that does")
        return found

    def stretches(self) -> list[dict[str, int]]:
        """Return JSON of consecutive parts for `rows`, each about 64 MB when an image is counted as 20 kB.

        Raises:
            UsageError: The file cannot be read in the format of its name.
        """
        if self._format == ".parquet":
            return self._parquet_stretches()
        parts = []
        with self._open() as file:
            lines = _Lines(file, 0, None)
            if self._format in _DELIMITERS:
                rows: Iterator[Any] = self._csv_reader(lines)
                self._next(rows, lines)
            else:
                rows = iter(lines)
            count = first = 0
            start = lines.position
            while self._next(rows, lines) is not None:
                count += 1
                if count - first == _ROWS:
                    parts.append({"first": first, "start": start, "stop": lines.position})
                    first, start = count, lines.position
            if count > first:
                parts.append({"first": first, "start": start, "stop": lines.position})
        return parts

    def rows(self, stretch: Mapping[str, int], columns: Sequence[str] | None) -> Iterator[tuple[int, Row | BadRow]]:
        """Yield number, from 0, and content of the rows of a stretch.

        Args:
            stretch: One of `stretches`.
            columns: Columns that are needed; None needs all. Only Parquet reads less.
        """
        if self._format == ".parquet":
            yield from self._parquet_rows(stretch, columns)
            return
        with self._open() as file:
            if self._format in _JSON_LINES:
                numbered = self._json_rows(file, stretch["start"], stretch["stop"])
            else:
                numbered = self._csv_rows(file, self._header(file), stretch["start"], stretch["stop"])
            for number, row in numbered:
                yield stretch["first"] + number, row

    def _open(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read {self._path}: {error.strerror}") from error

    def _csv_reader(self, lines: _Lines) -> Iterator[list[str]]:
        csv.field_size_limit(_MOST_CELL)
        return csv.reader(lines, delimiter=_DELIMITERS[self._format])

    def _header(self, file: BinaryIO) -> list[str]:
        lines = _Lines(file, 0, None)
        found: list[str] = self._next(self._csv_reader(lines), lines) or []
        return found

    def _next(self, rows: Iterator[Any], lines: _Lines) -> Any:
        """Return the next row, or None at the end."""
        before = lines.number
        try:
            return next(rows, None)
        except csv.Error as error:
            raise UsageError(f"{self._path}, the row from line {before + 1:,} on: {error}") from error

    def _csv_rows(
        self, file: BinaryIO, header: Sequence[str], start: int, stop: int
    ) -> Iterator[tuple[int, Row | BadRow]]:
        lines = _Lines(file, start, stop)
        rows = self._csv_reader(lines)
        number = 0
        while (cells := self._next(rows, lines)) is not None:
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif cells:
                yield number, BadRow("invalid_row", f"{len(cells)} cells for {len(header)} columns")
            number += 1

    def _json_rows(self, file: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, Row | BadRow]]:
        for number, line in enumerate(_Lines(file, start, stop)):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, BadRow("invalid_json", str(error))
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                yield number, BadRow("invalid_row", f"expected a JSON object, got {type(row).__name__}")

    def _parquet(self) -> Any:
        # Optional, as in `_parquet_rows`.
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise UsageError(f"{self._path}: reading Parquet needs `pip install 'unihetero_jax[prepare]'`") from error
        try:
            return parquet.ParquetFile(self._path)
        except ArrowException as error:
            raise UsageError(f"{self._path} is not a Parquet file: {error}") from error
        except OSError as error:
            raise UsageError(f"cannot read {self._path}: {error.strerror or error}") from error

    def _parquet_stretches(self) -> list[dict[str, int]]:
        about = self._parquet().metadata
        stretches = []
        first = 0
        for group in range(about.num_row_groups):
            count = about.row_group(group).num_rows
            # The table itself may contain the images.
            parts = max(1, -(-count // _ROWS), -(-about.row_group(group).total_byte_size // _UNIT_BYTES))
            bounds = [count * part // parts for part in range(parts + 1)]
            for start, stop in itertools.pairwise(bounds):
                if stop > start:
                    stretches.append({"first": first + start, "group": group, "start": start, "stop": stop})
            first += count
        return stretches

    def _parquet_rows(
        self, stretch: Mapping[str, int], columns: Sequence[str] | None
    ) -> Iterator[tuple[int, Row | BadRow]]:
        from pyarrow import ArrowException

        number = 0
        try:
            batches = self._parquet().iter_batches(
                batch_size=_BATCH_ROWS,
                row_groups=[stretch["group"]],
                columns=None if columns is None else list(columns),
                use_threads=False,
            )
            for batch in batches:
                start = max(0, stretch["start"] - number)
                stop = min(len(batch), stretch["stop"] - number)
                if start < stop:
                    found = batch.slice(start, stop - start).to_pylist()
                    for offset, row in enumerate(found, start=number + start - stretch["start"]):
                        yield stretch["first"] + offset, row
                number += len(batch)
                if number >= stretch["stop"]:
                    return
        except (ArrowException, OSError) as error:
            raise UsageError(f"{self._path}, row group {stretch['group']}: {error}") from error


class _Lines:
    """The lines of a file from one position to another, and the position of the next one.

    Bytes that are not UTF-8 become lone surrogates, which cannot be written as UTF-8 again.
    """

    def __init__(self, file: BinaryIO, start: int, stop: int | None):
        self._file = file
        self._stop = stop
        self.position = start
        self.number = 0
        file.seek(start)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._stop is not None and self.position >= self._stop:
            raise StopIteration
        line = self._file.readline()
        if not line:
            raise StopIteration
        if self.position == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        self.position = self._file.tell()
        self.number += 1
        return line.decode("utf-8", "surrogateescape")
