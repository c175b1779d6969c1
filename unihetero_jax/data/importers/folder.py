"""Importer of a folder of images and a table that describes them.

The table is CSV, TSV, JSONL or Parquet. Its rows name an image, by its path under the folder, and a caption, or a
question and an answer; Parquet may contain the image itself, as bytes or as Hugging Face stores it (``bytes``,
``path``).
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.data.ingest.captions import (
    attribute_text,
    caption_record,
    check_prompts,
    prompts_option,
    question_record,
    text_of,
)
from unihetero_jax.data.ingest.importer import Importer, Refused, Rejected, attempt, names, option
from unihetero_jax.data.ingest.inputs import PARTS, expand, file_sizes, find_image, read_image, try_images
from unihetero_jax.data.ingest.tables import FORMATS, Row, Table
from unihetero_jax.data.records.record import Record
from unihetero_jax.errors import UsageError, nearest

# Usual names of columns; the first that a table has is taken.
IMAGE_COLUMNS = ("image", "file_name", "filename", "image_path", "path", "file")
CAPTION_COLUMNS = ("caption", "text")
QUESTION_COLUMNS = ("question",)
# The one that VQAv2 chose for multiple choice comes first, then the only one, then those of several people.
ANSWER_COLUMNS = ("multiple_choice_answer", "answer", "answers")


def _column(help: str) -> Any:
    return option("", metavar="NAME", help=help)


@IMPORTERS.register("folder")
@dataclasses.dataclass(frozen=True)
class FolderImporter(Importer):
    """Images and a table.

    Attributes:
        root: The folder that the images' paths are relative to.
        tables: The table, or several with the same columns; patterns with ``*`` are expanded. By default the only one
            in the folder.
        image_column: By default the first of ``IMAGE_COLUMNS`` that the table has.
        caption_column: By default the first of ``CAPTION_COLUMNS``.
        question_column: Together with ``answer_column``, instead of captions. By default the first of
            ``QUESTION_COLUMNS`` and ``ANSWER_COLUMNS``, in a table with both and without captions.
        answer_column: The answer to the question, or a list of several people's, of which the most frequent is taken.
        key_column: Names the record; by default the image's path does.
        split_column: ``train``, ``test``, ``validation``, …; rows that are not for training go to the test set.
        attributes: Columns to store with the record; None stores all that have no other use.
        prompts: Phrases that ask for a caption; a record's key decides which it gets.

    Raises:
        UsageError: An option is impossible.
    """

    name = "folder"
    summary = "a folder of images and a table of captions, or of questions"
    examples = """
  unihetero data import folder photos --out=data/photos
  unihetero data import folder coco --table=coco/captions.jsonl --image_column=file --test_share=0.01 --out=data/coco
  unihetero data import folder vqa --table='vqa/*.parquet' --question_column=question --answer_column=answer \\
      --out=data/vqa"""

    root: str = option(
        metavar="FOLDER", help="folder that the images' paths are relative to", positional=True, exists="directory"
    )
    tables: Sequence[str] = option(
        (),
        metavar="FILE",
        help="CSV, TSV, JSONL or Parquet; a quoted pattern such as 'x/*.parquet' means several (default: the only one "
        "in FOLDER)",
        flag="table",
        parse=lambda text: (text,),
    )
    image_column: str = _column("path of the image (default: image, file_name, filename, image_path, path or file)")
    caption_column: str = _column("caption of the image (default: caption or text)")
    question_column: str = _column(
        "together with --answer_column, instead of a caption (default: question, in a table without captions)"
    )
    answer_column: str = _column("answer, or a list of which the most frequent is taken (default: answer or answers)")
    key_column: str = _column("name of the record (default: the image's path)")
    split_column: str = _column("train, test, validation, …; rows that are not for training go to the test set")
    attributes: Sequence[str] | None = option(
        None,
        metavar="A,B",
        help="columns to store with the record; an empty list stores none (default: all that have no other use)",
        parse=names,
    )
    prompts: Sequence[str] = prompts_option()

    def __post_init__(self) -> None:
        if not Path(self.root).is_dir():
            raise UsageError(f"{self.root}: no such directory")
        if bool(self.question_column) != bool(self.answer_column):
            raise UsageError("question_column and answer_column: expected both or neither")
        if self.question_column and self.caption_column:
            raise UsageError("caption_column and question_column: expected one of them")
        check_prompts(self.prompts)

    def provenance(self) -> Mapping[str, Any]:
        """Return JSON of the options, and the tables with their sizes."""
        return {**dataclasses.asdict(self), "tables": file_sizes(self._tables())}

    def units(self) -> Sequence[Mapping[str, Any]]:
        """Return stretches of the tables, each twice where the table has a split column.

        Raises:
            UsageError: A table cannot be read or lacks a column, or none of the first images exists.
        """
        parts: Sequence[dict[str, str]] = [{"part": "train"}, {"part": "test"}] if self.split_column else [{}]
        units: list[dict[str, Any]] = []
        for path in self._tables():
            columns = self._columns(path)
            for stretch in Table(path).stretches():
                units += [{"table": path, "columns": columns, **stretch, **part} for part in parts]
        if units:
            self._try_images(units[0])
        return units

    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """Yield the records of a stretch, in the order of the table."""
        columns, table, name = unit["columns"], Table(unit["table"]), Path(unit["table"]).name
        wanted = None if self.attributes is None else [*columns.values(), *self.attributes]
        for number, row in table.rows(unit, wanted):
            if self._part(row) == unit.get("part"):
                yield attempt(f"{name}, {table.counts} {number:,}", self._record, f"{name}:{number}", row, unit)

    def _tables(self) -> list[str]:
        """Return the paths of the tables.

        Raises:
            UsageError: There is none, or it is unclear which is meant.
        """
        if not self.tables:
            found = sorted(os.fspath(path) for path in Path(self.root).iterdir() if path.suffix.lower() in FORMATS)
            if len(found) != 1:
                what = "has no table" if not found else f"has {len(found)} tables"
                raise UsageError(f"{self.root} {what}; name it with --table=FILE ({', '.join(FORMATS)})")
            return found
        paths: list[str] = []
        for pattern in self.tables:
            paths += [path for path in expand(pattern) if path not in paths]
        missing = next((path for path in paths if not Path(path).is_file()), None)
        if missing is not None or not paths:
            raise UsageError(f"{missing or self.tables[0]}: no such table")
        return paths

    def _columns(self, path: str) -> dict[str, str]:
        """Return the column of each use."""
        there = Table(path).columns()
        uses: dict[str, tuple[str, Sequence[str]]] = {"image": (self.image_column, IMAGE_COLUMNS)}
        asks = not self.caption_column and not any(name in there for name in CAPTION_COLUMNS)
        if self.question_column or (asks and all(map(set(there).intersection, (QUESTION_COLUMNS, ANSWER_COLUMNS)))):
            uses["question"] = (self.question_column, QUESTION_COLUMNS)
            uses["answer"] = (self.answer_column, ANSWER_COLUMNS)
        else:
            uses["caption"] = (self.caption_column, CAPTION_COLUMNS)
        uses |= {"key": (self.key_column, ()), "split": (self.split_column, ())}
        found = {}
        for use, (named, usual) in uses.items():
            if named:
                self._check_column(path, use, named, there)
                found[use] = named
            elif usual:
                column = next((name for name in usual if name in there), None)
                if column is None:
                    raise UsageError(_unknown_columns(path, use, usual, there))
                found[use] = column
        for name in self.attributes or ():
            self._check_column(path, "attributes", name, there)
        return found

    def _check_column(self, path: str, use: str, name: str, there: Sequence[str]) -> None:
        if name not in there:
            raise UsageError(f"{path} has no column {name!r} ({use}); it has {', '.join(there)}{nearest(name, there)}")

    def _try_images(self, unit: Mapping[str, Any]) -> None:
        column = unit["columns"]["image"]

        def find(row: Row | Refused) -> bool:
            return not isinstance(row, Refused) and bool(self._image(row.get(column), self.max_bytes(unit)))

        rows = (row for _, row in Table(unit["table"]).rows(unit, [column]))
        try_images(unit["table"], rows, find, self.root)

    def _part(self, row: Row | Refused) -> str | None:
        """Return the part that a row belongs to; one of the two units that read a bad row reports it."""
        if not self.split_column:
            return None
        return "train" if isinstance(row, Refused) else PARTS.get(_split(row.get(self.split_column)), "train")

    def _record(self, place: str, row: Row | Refused, unit: Mapping[str, Any]) -> Record:
        if isinstance(row, Refused):
            raise row
        columns = unit["columns"]
        if "split" in columns and _split(row.get(columns["split"])) not in PARTS:
            raise Refused("unknown_split", f"{row.get(columns['split'])!r}: expected one of {', '.join(PARTS)}")
        max_bytes = self.max_bytes(unit)
        name, image = self._image(row.get(columns["image"]), max_bytes)
        key = name or place
        if "key" in columns and row.get(columns["key"]) in (None, ""):
            raise Refused("missing_key", f"no {columns['key']}")
        if "key" in columns:
            key = str(row[columns["key"]])
        others = [name for name in row if name not in columns.values()] if self.attributes is None else self.attributes
        attributes = attribute_text({name: row.get(name) for name in others})
        if "caption" in columns:
            return caption_record(key, image, text_of(row, columns["caption"]), self.prompts, attributes)
        question, answer = text_of(row, columns["question"]), _answer(row, columns["answer"])
        return question_record(key, image, question, answer, attributes)

    def _image(self, cell: Any, max_bytes: int) -> tuple[str, bytes]:
        """Return path and content of an image.

        Raises:
            Refused: There is no usable image.
        """
        if isinstance(cell, Mapping) and isinstance(cell.get("bytes"), bytes):
            return str(cell.get("path") or ""), cell["bytes"]
        if isinstance(cell, Mapping):
            cell = cell.get("path")
        if isinstance(cell, bytes):
            return "", cell
        if not isinstance(cell, str) or not cell:
            raise Refused("missing_image", f"expected the path of an image, got {cell!r}"[:200])
        return cell, read_image(find_image((self.root,), cell), max_bytes)


def _answer(row: Row, column: str) -> str:
    """Return the answer, or the most frequent of several, and the first of equally frequent ones."""
    answers = row.get(column)
    if not isinstance(answers, list) or not answers:
        return text_of({column: None if answers == [] else answers}, column)
    said = [text_of(one if isinstance(one, Mapping) else {"answer": one}, "answer") for one in answers]
    return Counter(said).most_common(1)[0][0]


def _split(value: Any) -> str:
    return str(value).strip().lower()


def _unknown_columns(path: str, use: str, usual: Sequence[str], there: Sequence[str]) -> str:
    """Format that no column has one of the usual names, and what to do."""
    small = {name.lower(): name for name in there}
    alike = next((small[name] for name in usual if name in small), "NAME")
    hint = f"name it with --{use}_column={alike}"
    if use == "caption" and {"question", "answer"} <= small.keys():
        hint += f", or use --question_column={small['question']} --answer_column={small['answer']}"
    return f"{path} has no column for the {use}: known are {', '.join(usual)}; it has {', '.join(there)}: {hint}"
