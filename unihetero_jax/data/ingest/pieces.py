"""The two kinds of work of an import, each a file or a few that are whole or absent.

A *piece* is what one unit of the input gave: for every split a file of serialised records on end, an array of their
sizes and, where duplicates are dropped, one of their digests. A *shard* is an ArrayRecord file copied from stretches of
consecutive pieces. Each ends with a small JSON file, which says that the rest is there; so whatever was killed between
two of them goes on from where it was. Neither imports JAX: many processes do this at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from array_record.python import array_record_module

from unihetero_jax.data.ingest import rebuild
from unihetero_jax.data.ingest.importer import ESCAPED_IMAGE, Importer, Rejected
from unihetero_jax.data.ingest.process_pool import Message, Progress, Work, serve
from unihetero_jax.data.ingest.steps import Dropped, Steps, digest
from unihetero_jax.data.records.building import WRITER_OPTIONS, write_errors
from unihetero_jax.data.records.example import serialize
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic

PIECES, DATASET = "pieces", "dataset"
# Of a record's text, for the tokenizer: a book teaches it little that its first pages do not.
_SAMPLED_CHARACTERS = 2000


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker has to know of an import.

    Attributes:
        directory: Where the import keeps its files until it is complete.
        importer: Name of the importer.
        options: That it is made of.
        steps: Done to every record.
        test_share: Share of the records that go to the test set, unless the input says which do.
        sampled_texts: Records of each unit whose texts are kept for the tokenizer.
    """

    directory: str
    importer: str
    options: Mapping[str, Any]
    steps: Steps
    test_share: float
    sampled_texts: int

    def message(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, message: Message) -> Task:
        """Out of that JSON."""
        return cls(**{**message, "steps": Steps(**message["steps"])})


def piece_path(directory: str | os.PathLike[str], unit: int, suffix: str) -> Path:
    """A file of a piece; ``suffix`` such as ``.json`` or ``-train_caption.sizes.npy``."""
    return Path(directory) / PIECES / f"{unit:06d}{suffix}"


def done_path(directory: str | os.PathLike[str], file: str) -> Path:
    """What says that a shard is complete."""
    return Path(directory) / PIECES / f"{file}.json"


def result(directory: str | os.PathLike[str], job: Message) -> Message | None:
    """What a job of either kind noted when it was done; None where it is not done."""
    path = piece_path(directory, job["number"], ".json") if "unit" in job else done_path(directory, job["file"])
    try:
        noted: Message = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return noted


def write_piece(task: Task, importer: Importer, job: Message, progress: Progress) -> Message:
    """Writes the piece of ``job["unit"]``, number ``job["number"]``.

    Returns:
        What its JSON file says: ``counts`` of the records by split, ``rejected`` by reason, an ``example`` of each
        reason, and how many texts were ``escaped``.

    Raises:
        OSError: A file cannot be written.
        UsageError: The input cannot be read.
    """
    number, unit = job["number"], job["unit"]
    writers: dict[str, _PieceWriter] = {}
    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    texts = _TextSample(task.sampled_texts)
    escaped = 0
    try:
        for made in _readable(importer, unit):
            progress(1)
            kept = made if isinstance(made, Rejected) else _kept(task.steps, made)
            if isinstance(kept, Rejected):
                rejected[kept.reason] += 1
                examples.setdefault(kept.reason, f"{kept.key}: {kept.detail}"[:300])
                continue
            record, data = kept
            part = unit.get("part") or part_of(record.key, task.test_share)
            split = f"{part}_{record.task}"
            if split not in writers:
                writers[split] = _PieceWriter(task, number, split)
            writers[split].add(record, data)
            escaped += sum(ESCAPED_IMAGE in turn.text for turn in record.conversations)
            if part == "train":
                texts.offer(record)
        for writer in writers.values():
            writer.finish()
    finally:
        for writer in writers.values():
            writer.close()
    if task.sampled_texts:
        write_atomic(piece_path(task.directory, number, ".texts.json"), json.dumps(texts.kept()))
    noted = {
        "counts": {split: len(writer.sizes) for split, writer in sorted(writers.items())},
        "rejected": dict(sorted(rejected.items())),
        "examples": dict(sorted(examples.items())),
        "escaped": escaped,
    }
    write_atomic(piece_path(task.directory, number, ".json"), json.dumps(noted))
    return noted


def part_of(key: str, test_share: float) -> str:
    """``test`` for that share of all keys, ``train`` for the others; always the same for a key."""
    word = hashlib.sha256(f"part\0{key}".encode()).digest()[:8]
    return "test" if int.from_bytes(word, "big") < test_share * 2**64 else "train"


def _readable(importer: Importer, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
    """The records of a unit; what cannot be read is the user's to mend, unlike what cannot be written."""
    try:
        yield from importer.records(unit)
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or dict(unit)}: {error.strerror or error}") from error


def _kept(steps: Steps, record: Record) -> tuple[Record, bytes] | Rejected:
    """A record as it is to be stored, and its bytes."""
    try:
        record = steps.apply(record)
        return record, serialize(record)
    except Dropped as dropped:
        return Rejected(record.key, dropped.reason, str(dropped))
    except UnicodeEncodeError as error:
        return Rejected(ascii(record.key), "invalid_utf8", str(error))


class _PieceWriter:
    """The files of one split of a piece."""

    def __init__(self, task: Task, number: int, split: str):
        self.sizes: list[int] = []
        self._digests: list[bytes] | None = [] if task.steps.drop_duplicates else None
        self._paths = {
            what: piece_path(task.directory, number, f"-{split}.{what}")
            for what in ("records", "sizes.npy", "digests.npy")
        }
        self._file, self._temporary = _temporary(self._paths["records"])

    def add(self, record: Record, data: bytes) -> None:
        self._file.write(data)
        self.sizes.append(len(data))
        if self._digests is not None:
            self._digests.append(digest(record))

    def finish(self) -> None:
        """Gives the files their names."""
        _commit(self._file, self._temporary, self._paths["records"])
        save_array(self._paths["sizes.npy"], np.asarray(self.sizes, np.uint32))
        if self._digests is not None:
            joined = np.frombuffer(b"".join(self._digests), np.uint64)
            save_array(self._paths["digests.npy"], joined.reshape(-1, 2))

    def close(self) -> None:
        """Leaves no unfinished file behind."""
        self._file.close()
        Path(self._temporary).unlink(missing_ok=True)


class _TextSample:
    """The texts of the records whose keys hash lowest: a fair sample whose members do not depend on each other."""

    def __init__(self, most: int):
        self._most = most
        # A heap of the negated hashes: the largest, which the next one may displace, comes first.
        self._heap: list[tuple[int, str]] = []

    def offer(self, record: Record) -> None:
        if not self._most:
            return
        word = int.from_bytes(hashlib.sha256(f"text\0{record.key}".encode()).digest()[:8], "big")
        if len(self._heap) == self._most and -word <= self._heap[0][0]:
            return
        turns = (turn.text.replace(IMAGE_TOKEN, " ").strip() for turn in record.conversations)
        said = "\n".join(filter(None, turns))[:_SAMPLED_CHARACTERS]
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, (-word, said))
        else:
            heapq.heapreplace(self._heap, (-word, said))

    def kept(self) -> list[tuple[int, str]]:
        """Hash and text of each, lowest first."""
        return sorted((-word, said) for word, said in self._heap)


def write_shard(directory: str, job: Message, progress: Progress) -> Message:
    """Copies a shard out of pieces: ``job["file"]`` of ``job["split"]``, stretches ``[unit, start, stop]`` of it.

    Returns:
        What its JSON file says: ``records``, their ``record_bytes``, and the file's ``bytes`` and ``sha256``.

    Raises:
        OSError: A file cannot be read or written.
    """
    target = Path(directory) / DATASET / job["file"]
    handle, temporary = tempfile.mkstemp(dir=Path(directory) / PIECES, prefix=".shard.")
    os.close(handle)
    records = record_bytes = 0
    try:
        with write_errors():
            writer = array_record_module.ArrayRecordWriter(temporary, WRITER_OPTIONS)
        for data in _copied(directory, job["split"], job["stretches"]):
            with write_errors():
                writer.write(data)
            records += 1
            record_bytes += len(data)
            progress(1)
        with write_errors():
            writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    noted = {"records": records, "record_bytes": record_bytes, "bytes": size, "sha256": sha256}
    write_atomic(done_path(directory, job["file"]), json.dumps(noted))
    return noted


def _copied(directory: str, split: str, stretches: Sequence[Sequence[int]]) -> Iterator[bytes]:
    """The records of stretches of pieces, without those that are duplicates."""
    for unit, start, stop in stretches:
        sizes = np.load(piece_path(directory, unit, f"-{split}.sizes.npy"), mmap_mode="r")
        left_out = piece_path(directory, unit, f"-{split}.dropped.npy")
        dropped = set(np.load(left_out).tolist()) if left_out.exists() else set()
        with piece_path(directory, unit, f"-{split}.records").open("rb") as file:
            file.seek(int(sizes[:start].sum(dtype=np.int64)))
            for index in range(start, stop):
                data = file.read(int(sizes[index]))
                if len(data) != sizes[index]:
                    raise OSError(f"{file.name} is shorter than it was: record {index} is cut off")
                if index not in dropped:
                    yield data


def _temporary(path: Path) -> tuple[BinaryIO, str]:
    """A file to write, beside the one that it will be; two that write the same one do not meet."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    return os.fdopen(handle, "wb"), name


def _commit(file: BinaryIO, temporary: str, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as a file that is whole or absent."""
    file, temporary = _temporary(path)
    try:
        with file:
            np.save(file, array)
            _commit(file, temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def work(opening: Message) -> Work:
    """The function that does either kind of job of one import."""
    task = Task.of(opening)
    importer = rebuild(task.importer, task.options)

    def do(job: Message, progress: Progress) -> Message:
        if "unit" in job:
            return write_piece(task, importer, job, progress)
        return write_shard(task.directory, job, progress)

    return do


if __name__ == "__main__":
    serve(work)
