"""Read tables of any length, CSV, TSV, JSONL or Parquet, one stretch at a time."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from unihetero_jax.data.ingest import json_stream
from unihetero_jax.data.ingest.importer import MAX_RECORD_MB, UNIT_BYTES, Refused
from unihetero_jax.data.ingest.inputs import MOST_TEXT_BYTES, check_utf8, open_text
from unihetero_jax.errors import UsageError, first_line

Row = Mapping[str, Any]
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
FORMATS = (*_DELIMITERS, *_JSON_LINES, ".parquet")
# Rows of a stretch: their images are estimated at 64 MB.
_ROWS = 3000
# Rows that are tried for one that can be read.
_TRIED_ROWS = 20
_BATCH_ROWS, _BATCH_BYTES = 64, UNIT_BYTES // 4


class Table:
    """One table.

    Args:
        path: The file.

    Attributes:
        counts: What the numbers of `rows` count: ``line``, from 1, or ``row``, from 0.

    Raises:
        UsageError: Its name has no known suffix.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        self._format = self._path.suffix.lower()
        if self._format not in FORMATS:
            raise UsageError(f"{path}: expected a table whose name ends in {', '.join(FORMATS)}")
        self.counts = "row" if self._format == ".parquet" else "line"

    def columns(self) -> list[str]:
        """Return the names of the columns; of JSONL, those of the first row that can be read.

        Raises:
            UsageError: The file cannot be read in the format of its name, has no column, or two of the same name.
        """
        if self._format == ".parquet":
            found = list(self._parquet().schema_arrow.names)
        elif self._format in _JSON_LINES:
            rows = itertools.islice(self.rows({"start": 0, "stop": 1 << 62, "line": 1}, None), _TRIED_ROWS)
            found = next((list(row) for _, row in rows if isinstance(row, dict)), [])
        else:
            with open_text(self._path) as file:
                found = self._header(file)
        if not found:
            raise UsageError(f"{self._path} names no columns; expected a first row that does")
        if repeated := next((name for name in found if found.count(name) > 1), None):
            raise UsageError(f"{self._path}, line 1: the column {repeated!r} is there twice; expected different names")
        return found

    def stretches(self) -> list[dict[str, int]]:
        """Return JSON of consecutive parts for `rows`, each about 64 MB when an image is counted as 20 kB.

        Raises:
            UsageError: The file cannot be read in the format of its name; the message names the line.
        """
        if self._format == ".parquet":
            return self._parquet_stretches()
        parts: list[dict[str, int]] = []
        for number, (start, stop, line) in enumerate(self._scan()):
            if number % _ROWS == 0:
                parts.append({"start": start, "line": line})
            parts[-1]["stop"] = stop
        return parts

    def rows(self, stretch: Mapping[str, int], columns: Sequence[str] | None) -> Iterator[tuple[int, Row | Refused]]:
        """Yield number, as ``counts`` says, and content of the rows of a stretch; ``Refused`` for a bad one.

        Args:
            stretch: One of `stretches`, perhaps with ``max_bytes``, the most bytes of a row.
            columns: Columns that are needed; None needs all. Only Parquet reads less.
        """
        if self._format == ".parquet":
            yield from self._parquet_rows(stretch, columns)
        elif self._format in _JSON_LINES:
            where = stretch["start"], stretch["stop"], stretch["line"]
            for line, row in json_stream.read(self._path, "lines", *where):
                if not isinstance(row, dict | Refused):
                    row = Refused("invalid_row", f"expected a JSON object, got {type(row).__name__}")
                yield line, row
        else:
            with open_text(self._path) as file:
                header = self._header(file)
                for _, _, line, cells in self._cells(file, stretch["start"], stretch["stop"], stretch["line"]):
                    try:
                        check_utf8("\n".join(cells))
                        yield line, dict(zip(header, cells, strict=True))
                    except Refused as refused:
                        yield line, refused

    def _scan(self) -> Iterator[tuple[int, int, int]]:
        """Yield start, stop and line of the rows."""
        if self._format in _JSON_LINES:
            yield from (found[:3] for found in json_stream.scan(self._path, "lines"))
            return
        with open_text(self._path) as file:
            header: list[str] = []
            for start, stop, line, cells in self._cells(file, file.tell()):
                if header and len(cells) != len(header):
                    raise UsageError(
                        f"{self._path}, line {line:,}: {len(cells)} cells for the {len(header)} columns of the first "
                        "row; expected cells that hold a delimiter or a line break to be in quotation marks"
                    )
                if header:
                    yield start, stop, line
                header = header or cells

    def _header(self, file: BinaryIO) -> list[str]:
        found = next((cells for *_, cells in self._cells(file, file.tell())), [])
        try:
            check_utf8("\n".join(found))
        except Refused as refused:
            raise UsageError(f"{self._path}, line 1: {refused}") from refused
        return found

    def _cells(
        self, file: BinaryIO, start: int, stop: int | None = None, line: int = 1
    ) -> Iterator[tuple[int, int, int, list[str]]]:
        """Yield start, stop, first line and cells of the rows that are not blank."""
        csv.field_size_limit(MOST_TEXT_BYTES)
        lines = _Lines(file, start, stop, line)
        rows = csv.reader(lines, delimiter=_DELIMITERS[self._format], strict=True)
        while True:
            lines.row, line = lines.position, lines.next_line
            try:
                cells = next(rows, None)
            except csv.Error as error:
                place = f"line {line:,}" if lines.next_line - line < 2 else f"lines {line:,} to {lines.next_line - 1:,}"
                what, expected = str(error), "each quoted cell to be closed, and quotation marks in it to be doubled"
                if "new-line" in what:
                    what, expected = "a carriage return within a line", "lines that end in \\n or \\r\\n"
                raise UsageError(f"{self._path}, {place}: {what}; expected {expected}") from error
            if cells is None:
                return
            if cells:
                yield lines.row, lines.position, line, cells

    def _parquet(self) -> Any:
        # Optional, as in `_parquet_rows`.
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise UsageError(f"{self._path}: reading Parquet needs `pip install 'unihetero_jax[prepare]'`") from error
        try:
            return parquet.ParquetFile(self._path, page_checksum_verification=True)
        except ArrowException as error:
            raise UsageError(f"{self._path} is not a Parquet file: {first_line(error)}") from error
        except OSError as error:
            raise UsageError(f"cannot read {self._path}: {error.strerror or first_line(error)}") from error

    def _parquet_stretches(self) -> list[dict[str, int]]:
        about = self._parquet().metadata
        stretches = []
        first = 0
        for group in range(about.num_row_groups):
            count = about.row_group(group).num_rows
            # The table itself may contain the images.
            parts = max(1, -(-count // _ROWS), -(-about.row_group(group).total_byte_size // UNIT_BYTES))
            bounds = [count * part // parts for part in range(parts + 1)]
            for start, stop in itertools.pairwise(bounds):
                if stop > start:
                    stretches.append({"first": first + start, "group": group, "start": start, "stop": stop})
            first += count
        return stretches

    def _parquet_rows(
        self, stretch: Mapping[str, int], columns: Sequence[str] | None
    ) -> Iterator[tuple[int, Row | Refused]]:
        from pyarrow import ArrowException

        file, number = self._parquet(), 0
        max_bytes = stretch.get("max_bytes", MAX_RECORD_MB * 1_000_000)
        try:
            about = file.metadata.row_group(stretch["group"])
            batches = file.iter_batches(
                batch_size=max(1, min(_BATCH_ROWS, _BATCH_BYTES * about.num_rows // max(1, about.total_byte_size))),
                row_groups=[stretch["group"]],
                columns=None if columns is None else list(columns),
                use_threads=False,
            )
            for batch in batches:
                start = max(0, stretch["start"] - number)
                stop = min(len(batch), stretch["stop"] - number)
                if start < stop:
                    found = _python_rows(batch.slice(start, stop - start), max_bytes)
                    yield from enumerate(found, start=stretch["first"] + number + start - stretch["start"])
                number += len(batch)
                if number >= stretch["stop"]:
                    return
        except (ArrowException, OSError) as error:
            raise UsageError(f"{self._path}, row group {stretch['group']}: {first_line(error)}") from error


def _python_rows(batch: Any, max_bytes: int) -> list[Row | Refused]:
    """Return the rows of an Arrow batch; one by one, where not all can be converted."""
    reason = "record_too_large", f"{batch.nbytes:,} bytes: expected at most --max_record_mb"
    if batch.nbytes <= max_bytes:
        try:
            found: list[Row | Refused] = batch.to_pylist()
            return found
        except (ArithmeticError, RecursionError, ValueError) as error:
            reason = "invalid_row", first_line(error)
    if len(batch) == 1:
        return [Refused(*reason)]
    return [row for index in range(len(batch)) for row in _python_rows(batch.slice(index, 1), max_bytes)]


class _Lines:
    """The lines of a file from one position to another.

    Bytes that are not UTF-8 become lone surrogates.

    Attributes:
        position: Position of the next line.
        next_line: Its number.
        row: Position of the row that the lines belong to: a row is bounded, too.
    """

    def __init__(self, file: BinaryIO, start: int, stop: int | None, line: int):
        self._file = file
        self._stop = stop
        self.position = self.row = start
        self.next_line = line
        file.seek(start)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._stop is not None and self.position >= self._stop:
            raise StopIteration
        line = self._file.readline(MOST_TEXT_BYTES + 1)
        if not line:
            raise StopIteration
        self.position += len(line)
        self.next_line += 1
        if self.position - self.row > MOST_TEXT_BYTES:
            raise csv.Error(f"a row of over {MOST_TEXT_BYTES >> 20} MiB, or a quotation mark that is never closed")
        return line.decode("utf-8", "surrogateescape")
