"""Drives an import: units of the input → pieces → shards → a dataset; killed at any moment, it goes on from there.

Everything happens in ``OUT.incomplete``: ``plan.json`` (what was asked for, and the units), ``pieces`` and ``dataset``,
which is renamed to ``OUT`` when it is whole. What the dataset holds depends on the input and the settings alone: not on
the number of workers, on who they are, or on how often the work was interrupted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from unihetero_jax.data.ingest import layout, options, pieces
from unihetero_jax.data.ingest.importer import Importer
from unihetero_jax.data.ingest.process_pool import Message, Progress, run_jobs
from unihetero_jax.data.ingest.steps import Steps
from unihetero_jax.data.ingest.vocabulary import add_tokenizer, check_tokenizer, sampled_texts
from unihetero_jax.data.records.building import SplitSizes, beside, exclusive, existing, shard_file, write_metadata
from unihetero_jax.data.records.example import features
from unihetero_jax.data.records.manifest import (
    FileEntry,
    Manifest,
    describe_files,
    load_manifest,
    write_manifest,
)
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic

VERSION = "1.0.0"
_PLAN_FILE = "plan.json"
_DESCRIPTION = "Images and conversations, imported with `unihetero data import {}`."


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked of an import, whatever is imported.

    Attributes:
        name: Of the dataset, part of the names of its files; the importer's by default.
        steps: Done to every record.
        test_share: Share of the records that go to the test set, by the hash of their key; where the input says which
            do, that counts.
        shard_mb: Size of a shard, about, in millions of bytes.
        vocabulary_size: Most pieces of a tokenizer that is trained on a sample of the texts; 0 trains none.
        tokenizer: A ``tokenizer.model`` or ``tokenizer.json`` to copy instead.

    Raises:
        UsageError: A value is impossible.
    """

    name: str = ""
    steps: Steps = dataclasses.field(default_factory=Steps)
    test_share: float = 0.0
    shard_mb: float = 200.0
    vocabulary_size: int = 8000
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name):
            raise UsageError(f"name={self.name!r} is no name of a dataset: expected small letters, digits and _")
        if not 0 <= self.test_share <= 1:
            raise UsageError(f"test_share={self.test_share} is impossible: expected 0 to 1")
        if not 0.001 <= self.shard_mb <= 100_000:
            raise UsageError(f"shard_mb={self.shard_mb:g} is impossible: expected 0.001 to 100,000")
        check_tokenizer(self.vocabulary_size, self.tokenizer)


class Execute(Protocol):
    """Does jobs of an import somewhere; see `Pool`."""

    def __call__(
        self,
        task: pieces.Task,
        jobs: Sequence[Message],
        progress: Progress,
        done: Callable[[int, Message], None],
        inherited: Sequence[int],
    ) -> None:
        """Does every job, and reports each with its number and result, never two at once."""
        ...


class Pool:
    """Does jobs in processes of this machine; with one worker, in this process.

    Args:
        workers: Most processes.

    Raises:
        UsageError: There are none.
    """

    def __init__(self, workers: int):
        if workers < 1:
            raise UsageError(f"workers={workers} is impossible: expected 1 or more")
        self._workers = workers

    def __call__(
        self,
        task: pieces.Task,
        jobs: Sequence[Message],
        progress: Progress,
        done: Callable[[int, Message], None],
        inherited: Sequence[int],
    ) -> None:
        """See `Execute`."""
        if min(self._workers, len(jobs)) > 1:
            run_jobs(pieces.__name__, task.message(), jobs, self._workers, progress, done, inherited)
            return
        work = pieces.work(task.message())
        for number, job in enumerate(jobs):
            done(number, work(job, progress))


def import_dataset(importer: Importer, out: str | os.PathLike[str], settings: Settings, execute: Execute) -> Manifest:
    """Imports a dataset into the directory ``out``, unless it is there already.

    Args:
        importer: What is imported.
        out: The directory to make; its parents are made too.
        settings: What is asked for.
        execute: Where the work is done; the files do not depend on it.

    Returns:
        The manifest of the dataset.

    Raises:
        UsageError: The input cannot be read or gives no record; ``out`` holds something else, or an import of something
            else or with other settings; another import is writing it; or it cannot be written.
    """
    if re.match(r"[a-z][a-z0-9]+:/", os.fspath(out)):
        raise UsageError(f"{os.fspath(out)}: expected a directory of a mounted file system, not an address")
    target = Path(out).resolve()
    name = settings.name or importer.name
    # As JSON reads it back, to be compared with what is stored.
    arguments = json.loads(json.dumps(_arguments(importer, settings)))
    provenance = json.loads(json.dumps(importer.provenance()))
    try:
        if (found := _complete(target, name, arguments, provenance)) is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(target) as lock:
                # The import that held the lock a moment ago may have finished the work.
                found = _complete(target, name, arguments, provenance)
                if found is None:
                    run = _Run(target, name, importer, settings, arguments, provenance)
                    started = time.monotonic()
                    made = run.all(execute, lock)
                    seconds = time.monotonic() - started
                    print(f"{out}: {_told(made)}; {seconds:.1f} s, {run.records / seconds:,.0f} records/s")
                    return made
        print(f"{out} is complete already: {_told(found)}")
        return found
    except OSError as error:
        kept = "; what is done is kept, and the same command goes on from there"
        hint = kept if beside(target, ".incomplete").exists() else ""
        raise UsageError(f"cannot write {error.filename or target}: {error.strerror or error}{hint}") from error


def _arguments(importer: Importer, settings: Settings) -> dict[str, Any]:
    fields = dataclasses.asdict(settings)
    steps = fields.pop("steps")
    fields.pop("name")
    return {"importer": importer.name, **steps, **fields}


def _complete(target: Path, name: str, arguments: Mapping[str, Any], provenance: Mapping[str, Any]) -> Manifest | None:
    """The dataset at ``target`` if it is the wanted one, None if there is none; see `building.existing`."""
    found = existing(target, name, arguments)
    if found is None:
        return None
    if difference := _difference(found.provenance, provenance):
        raise UsageError(f"{target} was imported with {difference}; choose another directory or remove it")
    # Left by an import that was killed after it had given the dataset its name.
    incomplete = beside(target, ".incomplete")
    if _is_ours(incomplete):
        shutil.rmtree(incomplete, ignore_errors=True)  # its import may be doing so itself at this moment
    return found


def _difference(stored: Any, wanted: Any, name: str = "") -> str:
    """The first value that differs, in words; empty where none does."""
    if stored == wanted:
        return ""
    pairs: Iterable[tuple[str, Any, Any]] = ()
    if isinstance(stored, dict) and isinstance(wanted, dict):
        dot = "." if name else ""
        pairs = ((f"{name}{dot}{key}", stored.get(key), wanted.get(key)) for key in {**wanted, **stored})
    elif isinstance(stored, list) and isinstance(wanted, list):
        both = itertools.zip_longest(stored, wanted)
        pairs = ((f"{name}[{index}]", old, new) for index, (old, new) in enumerate(both))
    for part, old, new in pairs:
        if difference := _difference(old, new, part):
            return difference
    return f"{name}={_short(stored)}, not {_short(wanted)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "…"


def _is_ours(incomplete: Path) -> bool:
    """Whether a directory is what an import leaves when it is killed, at whatever moment."""
    if not incomplete.is_dir():
        return False
    names = {path.name for path in incomplete.iterdir()}
    return _PLAN_FILE in names or (
        names <= {pieces.PIECES, pieces.DATASET} and not any(path.is_file() for path in incomplete.rglob("*"))
    )


def _told(manifest: Manifest) -> str:
    """Records by split, what was left out, and the size, in words."""
    size = sum(entry.bytes for entry in manifest.files.values())
    splits = ", ".join(f"{split} {count:,}" for split, count in manifest.counts.items())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejected.items())
    left_out = sum(manifest.rejected.values())
    return (
        f"{sum(manifest.counts.values()):,} records ({splits}), {left_out:,} rejected"
        + (f" ({reasons})" if reasons else "")
        + f", {size / 1e6:,.1f} MB"
    )


class _Run:
    """One import, by the process that alone may do it.

    Attributes:
        records: Of the input that were read, those that an interrupted import had read before left out.
    """

    def __init__(
        self,
        target: Path,
        name: str,
        importer: Importer,
        settings: Settings,
        arguments: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ):
        self._target = target
        self._name = name
        self._importer = importer
        self._settings = settings
        self._arguments = arguments
        self._provenance = provenance
        self._directory = beside(target, ".incomplete")
        self._dataset = self._directory / pieces.DATASET
        self.records = 0

    def all(self, execute: Execute, lock: int) -> Manifest:
        units = self._plan()
        task = pieces.Task(
            directory=os.fspath(self._directory),
            importer=self._importer.name,
            options=options(self._importer),
            steps=self._settings.steps,
            test_share=self._settings.test_share,
            sampled_texts=sampled_texts(len(units)),
        )
        results = self._pieces(task, units, execute, lock)
        counts = [result["counts"] for result in results]
        rejected = sum((Counter(result["rejected"]) for result in results), Counter[str]())
        if repeated := self._drop_duplicates(counts):
            rejected["duplicate"] += repeated
        self._explain(results)
        jobs = self._shard_jobs(counts)
        if not jobs:
            shutil.rmtree(self._directory)
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items()))
            raise UsageError(f"no record was imported; rejected: {reasons or 'none, the input is empty'}")
        done = self._shards(task, jobs, execute, lock)
        splits: dict[str, list[Message]] = {}
        for job, result in zip(jobs, done, strict=True):
            splits.setdefault(job["split"], []).append(result)
        files = {
            job["file"]: FileEntry(result["bytes"], result["sha256"]) for job, result in zip(jobs, done, strict=True)
        }
        return self._finish(splits, files, rejected, sum(result["escaped"] for result in results), len(units))

    def _plan(self) -> list[Mapping[str, Any]]:
        """The units: as planned before, or planned now and noted."""
        # The tokenizer is made last: another one is no reason to import anew.
        late = ("vocabulary_size", "tokenizer")
        decisive = {
            "name": self._name,
            **{key: value for key, value in self._arguments.items() if key not in late},
            **self._provenance,
        }
        path = self._directory / _PLAN_FILE
        if path.exists():
            plan = json.loads(path.read_text(encoding="utf-8"))
            if difference := _difference(plan["decisive"], decisive):
                raise UsageError(
                    f"{self._directory} holds an import that was begun with {difference}; "
                    f"give it the same again, or remove it"
                )
            units: list[Mapping[str, Any]] = plan["units"]
            return units
        if self._directory.exists() and not _is_ours(self._directory):
            raise UsageError(f"{self._directory} is in the way: it is no leftover of an interrupted import")
        units = json.loads(json.dumps(self._importer.units()))
        if not units:
            raise UsageError("nothing to import: the input is empty")
        for part in (pieces.PIECES, pieces.DATASET):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"decisive": decisive, "units": units}))
        return units

    def _pieces(
        self, task: pieces.Task, units: Sequence[Mapping[str, Any]], execute: Execute, lock: int
    ) -> list[Message]:
        """Makes the pieces that are not there; gives what each came to."""
        jobs = [{"number": number, "unit": unit} for number, unit in enumerate(units)]
        results = [pieces.result(self._directory, job) for job in jobs]
        missing = [number for number, result in enumerate(results) if result is None]
        if missing and len(missing) < len(units):
            print(f"going on: {len(units) - len(missing):,} of {len(units):,} pieces are there")

        def note(number: int, result: Message) -> None:
            results[missing[number]] = result
            self.records += sum(result["counts"].values()) + sum(result["rejected"].values())

        if missing:
            with tqdm(unit="record", desc="import", disable=not sys.stderr.isatty()) as bar:
                execute(task, [jobs[number] for number in missing], bar.update, note, (lock,))
        return _all(results)

    def _drop_duplicates(self, counts: Sequence[Mapping[str, int]]) -> int:
        """Notes beside each piece which of its records an earlier one is the same as; gives their number."""
        if not self._settings.steps.drop_duplicates:
            return 0
        parts = [(unit, split, count) for unit, own in enumerate(counts) for split, count in own.items()]

        def digests(index: int) -> np.ndarray:
            unit, split, _ = parts[index]
            found: np.ndarray = np.load(
                pieces.piece_path(self._directory, unit, f"-{split}.digests.npy"), mmap_mode="r"
            )
            return found

        dropped = layout.duplicates([count for _, _, count in parts], digests)
        for (unit, split, _), indices in zip(parts, dropped, strict=True):
            if len(indices):
                pieces.save_array(pieces.piece_path(self._directory, unit, f"-{split}.dropped.npy"), indices)
        return sum(map(len, dropped))

    def _explain(self, results: Sequence[Message]) -> None:
        """Prints the first record of each reason for which some were rejected."""
        examples: dict[str, str] = {}
        for result in results:
            examples = {**result["examples"], **examples}
        for reason, example in sorted(examples.items()):
            print(f"rejected as {reason}, the first: {' '.join(example.split())}")

    def _shard_jobs(self, counts: Sequence[Mapping[str, int]]) -> list[dict[str, Any]]:
        """A job a shard; those of a split follow each other."""
        jobs = []
        for split in sorted({split for own in counts for split in own}):

            def sizes(unit: int, split: str = split) -> np.ndarray:
                own = np.load(pieces.piece_path(self._directory, unit, f"-{split}.sizes.npy"))
                dropped = pieces.piece_path(self._directory, unit, f"-{split}.dropped.npy")
                if self._settings.steps.drop_duplicates and dropped.exists():
                    own[np.load(dropped)] = 0
                return own

            units = [unit for unit, own in enumerate(counts) if own.get(split)]
            planned = layout.shards(units, sizes, int(self._settings.shard_mb * 1e6))
            jobs += [
                {
                    "split": split,
                    "file": shard_file(self._name, split, number, len(planned)),
                    "stretches": [list(stretch) for stretch in stretches],
                }
                for number, stretches in enumerate(planned)
            ]
        return jobs

    def _shards(
        self, task: pieces.Task, jobs: Sequence[Mapping[str, Any]], execute: Execute, lock: int
    ) -> list[Message]:
        """Makes the shards that are not there, and frees what was copied; gives what each came to."""
        results = [pieces.result(self._directory, job) for job in jobs]
        missing = [number for number, result in enumerate(results) if result is None]
        wanted = Counter(source for number in missing for source in _sources(jobs[number]))
        for source in {source for job in jobs for source in _sources(job)} - set(wanted):
            self._free(*source)

        def note(number: int, result: Message) -> None:
            results[missing[number]] = result
            for source in _sources(jobs[missing[number]]):
                wanted[source] -= 1
                if not wanted[source]:
                    # Of a terabyte, two copies would be one too many.
                    self._free(*source)

        if missing:
            with tqdm(unit="record", desc="shards", disable=not sys.stderr.isatty()) as bar:
                execute(task, [jobs[number] for number in missing], bar.update, note, (lock,))
        return _all(results)

    def _free(self, unit: int, split: str) -> None:
        pieces.piece_path(self._directory, unit, f"-{split}.records").unlink(missing_ok=True)

    def _finish(
        self,
        shards: Mapping[str, Sequence[Message]],
        files: Mapping[str, FileEntry],
        rejected: Mapping[str, int],
        escaped: int,
        units: int,
    ) -> Manifest:
        """Adds what is no shard, and gives the dataset its name."""
        for path in self._dataset.iterdir():
            # Of an earlier end that was interrupted.
            if path.name not in files:
                path.unlink()
        splits = {
            split: SplitSizes([one["records"] for one in done], sum(one["record_bytes"] for one in done))
            for split, done in shards.items()
        }
        identity = {"name": self._name, "version": VERSION, "module_name": __name__}
        write_metadata(self._dataset, identity, _DESCRIPTION.format(self._importer.name), features(), splits)
        texts = [pieces.piece_path(self._directory, unit, ".texts.json") for unit in range(units)]
        add_tokenizer(self._dataset, texts, self._settings.vocabulary_size, self._settings.tokenizer)
        manifest = Manifest(
            name=self._name,
            arguments=self._arguments,
            counts={name: sum(split.lengths) for name, split in splits.items()},
            files=dict(sorted({**files, **describe_files(self._dataset, leave_out=files)}.items())),
            shards={name: split.lengths for name, split in splits.items()},
            rejected=dict(sorted(rejected.items())),
            escaped=escaped,
            provenance=self._provenance,
        )
        write_manifest(self._dataset, manifest)
        load_manifest(self._dataset)
        os.rename(self._dataset, self._target)
        # What cannot be removed now is when somebody asks for the dataset again.
        shutil.rmtree(self._directory, ignore_errors=True)
        return manifest


def _sources(job: Mapping[str, Any]) -> set[tuple[int, str]]:
    return {(unit, job["split"]) for unit, _, _ in job["stretches"]}


def _all(results: Sequence[Message | None]) -> list[Message]:
    assert None not in results
    return [result for result in results if result is not None]
