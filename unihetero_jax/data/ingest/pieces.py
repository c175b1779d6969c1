"""The two kinds of work of an import, each of which produces files that are complete or absent.

A *piece* is the result of one unit of the input: for every split a file of concatenated serialized records, an array of
their sizes and, where duplicates are dropped, one of their digests. A *shard* is an ArrayRecord file copied from
stretches of consecutive pieces. Each ends with a small JSON file, which says that the rest is complete; so an import
that was killed continues from there. Neither imports JAX: many processes do this at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from array_record.python import array_record_module

from unihetero_jax.config.user_files import import_components
from unihetero_jax.data.ingest.importer import ESCAPED_IMAGE, Importer, Refused, Rejected, rebuild
from unihetero_jax.data.ingest.inputs import check_utf8
from unihetero_jax.data.ingest.phrases import key_hash
from unihetero_jax.data.ingest.process_pool import Message, Progress, Work, serve
from unihetero_jax.data.ingest.settings import Steps
from unihetero_jax.data.ingest.steps import apply, digest
from unihetero_jax.data.records.building import WRITER_OPTIONS, write_errors
from unihetero_jax.data.records.example import serialize
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record
from unihetero_jax.errors import UsageError
from unihetero_jax.files import atomic_file, write_atomic

PIECES, DATASET = "pieces", "dataset"
# Characters of a record's text for training the tokenizer, which learns little from more of one record.
_SAMPLED_CHARACTERS = 2000


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything that a worker has to know of an import.

    Attributes:
        directory: Directory of the import's files until it is complete.
        importer: Name of the importer.
        options: Its options.
        steps: Steps applied to every record.
        test_share: Share of the records that go to the test set, unless the input says which do.
        sampled_texts: Records of each unit whose texts are kept for the tokenizer.
        imports: The user's modules and files that register importers.
    """

    directory: str
    importer: str
    options: Mapping[str, Any]
    steps: Steps
    test_share: float
    sampled_texts: int
    imports: Sequence[str] = ()

    def message(self) -> dict[str, Any]:
        """Return it as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, message: Message) -> Task:
        """Make it from that JSON."""
        return cls(**{**message, "steps": Steps(**message["steps"])})


def piece_path(directory: str | os.PathLike[str], unit: int, suffix: str) -> Path:
    """Return the path of a file of a piece; ``suffix`` such as ``.json`` or ``-train_caption.sizes.npy``."""
    return Path(directory) / PIECES / f"{unit:06d}{suffix}"


def done_path(directory: str | os.PathLike[str], file: str) -> Path:
    """Return the path of the file that says that a shard is complete."""
    return Path(directory) / PIECES / f"{file}.json"


def result(directory: str | os.PathLike[str], job: Message) -> Message | None:
    """Return the result of a job of either kind, or None where it is not done."""
    path = piece_path(directory, job["number"], ".json") if "unit" in job else done_path(directory, job["file"])
    try:
        noted: Message = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return noted


def write_piece(task: Task, importer: Importer, job: Message, progress: Progress) -> Message:
    """Write the piece of ``job["unit"]``, number ``job["number"]``.

    Returns:
        The content of its JSON file: ``counts`` of the records by split, ``rejected`` by reason, an ``example`` of each
        reason, and how many texts were ``escaped``.

    Raises:
        OSError: A file cannot be written.
        UsageError: The input cannot be read.
    """
    number, unit = job["number"], job["unit"]
    splits: dict[str, _SplitPiece] = {}
    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    texts = _TextSample(task.sampled_texts)
    escaped = 0
    with contextlib.ExitStack() as files:
        for found in _readable(importer, {**unit, "max_bytes": task.steps.max_record_mb * 1_000_000}):
            progress(1)
            prepared = found if isinstance(found, Rejected) else _prepare(task.steps, found)
            if isinstance(prepared, Rejected):
                rejected[prepared.reason] += 1
                example = f"{prepared.key}: {prepared.detail}"[:300]
                examples.setdefault(prepared.reason, example.encode(errors="backslashreplace").decode())
                continue
            record, data = prepared
            part = unit.get("part") or part_of(record.key, task.test_share)
            split = f"{part}_{record.task}"
            if split not in splits:
                path = piece_path(task.directory, number, f"-{split}.records")
                splits[split] = _SplitPiece(files.enter_context(atomic_file(path)))
            splits[split].add(record, data, task.steps.drop_duplicates)
            escaped += sum(ESCAPED_IMAGE in turn.text for turn in record.conversations)
            if part == "train":
                texts.offer(record)
    for split, piece in splits.items():
        save_array(piece_path(task.directory, number, f"-{split}.sizes.npy"), np.asarray(piece.sizes, np.uint32))
        if task.steps.drop_duplicates:
            digests = np.frombuffer(b"".join(piece.digests), np.uint64).reshape(-1, 2)
            save_array(piece_path(task.directory, number, f"-{split}.digests.npy"), digests)
    if task.sampled_texts:
        write_atomic(piece_path(task.directory, number, ".texts.json"), json.dumps(texts.lowest()))
    noted = {
        "counts": {split: len(piece.sizes) for split, piece in sorted(splits.items())},
        "rejected": dict(sorted(rejected.items())),
        "examples": dict(sorted(examples.items())),
        "escaped": escaped,
    }
    write_atomic(piece_path(task.directory, number, ".json"), json.dumps(noted))
    return noted


def part_of(key: str, test_share: float) -> str:
    """Return ``test`` for that share of all keys, ``train`` for the others; always the same for a key."""
    return "test" if key_hash("part", key) < test_share * 2**64 else "train"


def _readable(importer: Importer, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
    """Yield the records of a unit; an input that cannot be read is a usage error, unlike a full disk."""
    try:
        yield from importer.records(unit)
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or dict(unit)}: {error.strerror or error}") from error


def _prepare(steps: Steps, record: Record) -> tuple[Record, bytes] | Rejected:
    """Return a record as it is to be stored, and its bytes."""
    try:
        for text in (record.key, *(turn.text for turn in record.conversations)):
            check_utf8(text)
        record = apply(steps, record)
        return record, serialize(record)
    except Refused as refused:
        return refused.of(record.place or record.key)


@dataclasses.dataclass
class _SplitPiece:
    """The records of one split of a piece: their file, sizes and digests."""

    file: IO[bytes]
    sizes: list[int] = dataclasses.field(default_factory=list)
    digests: list[bytes] = dataclasses.field(default_factory=list)

    def add(self, record: Record, data: bytes, with_digest: bool) -> None:
        self.file.write(data)
        self.sizes.append(len(data))
        if with_digest:
            self.digests.append(digest(record))


class _TextSample:
    """The texts of the records whose keys have the lowest hashes: a fair sample, the same for any order."""

    def __init__(self, most: int):
        self._most = most
        # A heap of the negated hashes: the largest, which the next one may displace, comes first.
        self._heap: list[tuple[int, str]] = []

    def offer(self, record: Record) -> None:
        hashed = -key_hash("text", record.key)
        full = len(self._heap) == self._most
        if not self._most or (full and hashed <= self._heap[0][0]):
            return
        turns = (turn.text.replace(IMAGE_TOKEN, " ").strip() for turn in record.conversations)
        text = "\n".join(filter(None, turns))[:_SAMPLED_CHARACTERS]
        (heapq.heapreplace if full else heapq.heappush)(self._heap, (hashed, text))

    def lowest(self) -> list[tuple[int, str]]:
        """Return hash and text of each, lowest first."""
        return sorted((-hashed, text) for hashed, text in self._heap)


def write_shard(directory: str, job: Message, progress: Progress) -> Message:
    """Copy a shard from pieces: ``job["file"]`` of ``job["split"]``, from its stretches ``[unit, start, stop]``.

    Returns:
        The content of its JSON file: ``records``, their ``record_bytes``, and the file's ``bytes`` and ``sha256``.

    Raises:
        OSError: A file cannot be read or written.
    """
    records = record_bytes = 0
    with atomic_file(Path(directory) / DATASET / job["file"]) as file:
        with write_errors():
            writer = array_record_module.ArrayRecordWriter(file.name, WRITER_OPTIONS)
        for data in _copied(directory, job["split"], job["stretches"]):
            with write_errors():
                writer.write(data)
            records += 1
            record_bytes += len(data)
            progress(1)
        with write_errors():
            writer.close()
        with open(file.name, "rb") as written:
            sha256 = hashlib.file_digest(written, "sha256").hexdigest()
            size = written.tell()
    noted = {"records": records, "record_bytes": record_bytes, "bytes": size, "sha256": sha256}
    write_atomic(done_path(directory, job["file"]), json.dumps(noted))
    return noted


def _copied(directory: str, split: str, stretches: Sequence[Sequence[int]]) -> Iterator[bytes]:
    """Yield the records of stretches of pieces, without duplicates."""
    for unit, start, stop in stretches:
        sizes = np.load(piece_path(directory, unit, f"-{split}.sizes.npy"), mmap_mode="r")
        left_out = piece_path(directory, unit, f"-{split}.dropped.npy")
        dropped = set(np.load(left_out).tolist()) if left_out.exists() else set()
        with piece_path(directory, unit, f"-{split}.records").open("rb") as file:
            file.seek(int(sizes[:start].sum(dtype=np.int64)))
            for index in range(start, stop):
                data = file.read(int(sizes[index]))
                if len(data) != sizes[index]:
                    raise OSError(f"{file.name} is shorter than it was: record {index} is truncated")
                if index not in dropped:
                    yield data


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as a file that is complete or absent."""
    with atomic_file(path) as file:
        np.save(file, array)


def work(opening: Message) -> Work:
    """Return the function that does either kind of job of one import."""
    task = Task.of(opening)
    import_components(task.imports)
    importer = rebuild(task.importer, task.options)

    def do(job: Message, progress: Progress) -> Message:
        if "unit" in job:
            return write_piece(task, importer, job, progress)
        return write_shard(task.directory, job, progress)

    return do


if __name__ == "__main__":
    serve(work)
