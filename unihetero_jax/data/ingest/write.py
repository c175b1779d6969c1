"""Drive an import: units of the input → pieces → shards → a dataset; killed at any moment, it continues from there.

Everything happens in ``OUT.incomplete``: ``plan.json`` (settings and units), ``pieces`` and ``dataset``, which is
renamed to ``OUT`` when it is complete. The content of the dataset depends on the input and the settings alone: not on
the number of workers, on where they run, or on how often the work was interrupted.
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

from unihetero_jax.config.user_files import imported
from unihetero_jax.data.ingest import layout, pieces
from unihetero_jax.data.ingest.importer import Importer
from unihetero_jax.data.ingest.process_pool import Message, Progress, run_jobs
from unihetero_jax.data.ingest.settings import Settings
from unihetero_jax.data.ingest.vocabulary import add_tokenizer, sampled_texts
from unihetero_jax.data.records.building import SplitSizes, beside, exclusive, existing, shard_file, write_metadata
from unihetero_jax.data.records.example import features
from unihetero_jax.data.records.manifest import FileEntry, Manifest, describe_files, load_manifest, write_manifest
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.tokenizer.loading import load_tokenizer

VERSION = "1.0.0"
_PLAN_FILE = "plan.json"
_DESCRIPTION = "Images and conversations, imported with `unihetero data import {}`."
# Settings of the tokenizer, which is made last: another one is no reason to import anew.
_LATE = ("vocabulary_size", "tokenizer")


class Execute(Protocol):
    """Runs the jobs of an import somewhere; see `Pool`."""

    def __call__(
        self,
        task: pieces.Task,
        jobs: Sequence[Message],
        progress: Progress,
        done: Callable[[int, Message], None],
        inherited: Sequence[int],
    ) -> None:
        """Run every job, and report each with its number and result, never two at once."""
        ...


class Pool:
    """Runs jobs in processes of this machine; with one worker, in this process.

    Args:
        workers: Most processes.

    Raises:
        UsageError: The number is below 1.
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
    """Import a dataset into the directory ``out``, unless it is there already.

    Args:
        importer: Reads the input.
        out: The directory to make; its parents are made too.
        settings: Settings of the import.
        execute: Runs the jobs; the files do not depend on it.

    Returns:
        The manifest of the dataset.

    Raises:
        UsageError: The input cannot be read or gives no record; ``out`` holds something else, or an import of something
            else or with other settings; another import is writing it; or it cannot be written.
    """
    if re.match(r"[a-z][a-z0-9]+:/", os.fspath(out)):
        raise UsageError(f"{os.fspath(out)}: expected a directory of a mounted file system, not an address")
    if settings.tokenizer:
        load_tokenizer(settings.tokenizer)  # refused early rather than at the end
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
                    manifest = run.all(execute, lock)
                    seconds = time.monotonic() - started
                    print(f"{out}: {_summary(manifest)}; {seconds:.1f} s, {run.records / seconds:,.0f} records/s")
                    return manifest
        print(f"{out} is complete already: {_summary(found)}")
        return found
    except OSError as error:
        kept = beside(target, ".incomplete").exists()
        hint = "; what is done is kept, and the same command continues from there" if kept else ""
        raise UsageError(f"cannot write {error.filename or target}: {error.strerror or error}{hint}") from error


def _arguments(importer: Importer, settings: Settings) -> dict[str, Any]:
    fields = dataclasses.asdict(settings)
    steps = fields.pop("steps")
    fields.pop("name")
    return {"importer": importer.name, **steps, **fields}


def _complete(target: Path, name: str, arguments: Mapping[str, Any], provenance: Mapping[str, Any]) -> Manifest | None:
    """Return the dataset at ``target`` if it is the wanted one, None if there is none; see `building.existing`."""
    found = existing(target, name, arguments)
    if found is None:
        return None
    if difference := _difference(found.provenance, provenance):
        raise UsageError(f"{target} was imported with {difference}; choose another directory or remove it")
    # Left by an import that was killed after renaming the dataset.
    incomplete = beside(target, ".incomplete")
    if _is_ours(incomplete):
        shutil.rmtree(incomplete, ignore_errors=True)  # its import may be doing so itself at this moment
    return found


def _difference(stored: Any, wanted: Any, name: str = "") -> str:
    """Describe the first value that differs; empty where none does."""
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
    """Return whether a directory is a leftover of an import, killed at any moment."""
    if not incomplete.is_dir():
        return False
    names = {path.name for path in incomplete.iterdir()}
    return _PLAN_FILE in names or (
        names <= {pieces.PIECES, pieces.DATASET} and not any(path.is_file() for path in incomplete.rglob("*"))
    )


def _summary(manifest: Manifest) -> str:
    """Format the records by split, the rejected ones, and the size."""
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
    """One import, by the process that holds the lock.

    Attributes:
        records: Records that were read from the input, without those that an interrupted import had read before.
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
            options=self._importer.options(),
            steps=self._settings.steps,
            test_share=self._settings.test_share,
            sampled_texts=sampled_texts(len(units)),
            imports=imported(),
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
        """Return the units as planned before, or plan and store them."""
        decisive = {
            "name": self._name,
            **{key: value for key, value in self._arguments.items() if key not in _LATE},
            **self._provenance,
        }
        path = self._directory / _PLAN_FILE
        if path.exists():
            plan = json.loads(path.read_text(encoding="utf-8"))
            if difference := _difference(plan["decisive"], decisive):
                raise UsageError(
                    f"{self._directory} holds an import that was begun with {difference}; "
                    "repeat the same command, or remove it"
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
        """Make the missing pieces; return the result of each."""

        def count(job: Message, result: Message) -> None:
            self.records += sum(result["counts"].values()) + sum(result["rejected"].values())

        jobs = [{"number": number, "unit": unit} for number, unit in enumerate(units)]
        complete = sum(pieces.result(self._directory, job) is not None for job in jobs)
        if 0 < complete < len(jobs):
            print(f"continuing: {complete:,} of {len(jobs):,} pieces are complete")
        return self._run_missing("import", task, jobs, execute, lock, count)

    def _run_missing(
        self,
        what: str,
        task: pieces.Task,
        jobs: Sequence[Message],
        execute: Execute,
        lock: int,
        done: Callable[[Message, Message], None],
    ) -> list[Message]:
        """Run the jobs that are not done, with a progress bar; return the result of each job.

        Args:
            what: Label of the progress bar.
            task: Task of the jobs.
            jobs: The jobs.
            execute: Runs jobs.
            lock: Descriptor of the lock, which workers inherit.
            done: Called with every job that is run here, and its result.
        """
        results = [pieces.result(self._directory, job) for job in jobs]
        missing = [number for number, result in enumerate(results) if result is None]

        def note(number: int, result: Message) -> None:
            results[missing[number]] = result
            done(jobs[missing[number]], result)

        if missing:
            with tqdm(unit="record", desc=what, disable=not sys.stderr.isatty()) as bar:
                execute(task, [jobs[number] for number in missing], bar.update, note, (lock,))
        assert None not in results
        return [result for result in results if result is not None]

    def _drop_duplicates(self, counts: Sequence[Mapping[str, int]]) -> int:
        """Note beside each piece which of its records duplicate an earlier one; return their number."""
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
        """Print the first rejected record of each reason."""
        examples: dict[str, str] = {}
        for result in results:
            examples = {**result["examples"], **examples}
        for reason, example in sorted(examples.items()):
            print(f"rejected as {reason}, the first: {' '.join(example.split())}")

    def _shard_jobs(self, counts: Sequence[Mapping[str, int]]) -> list[dict[str, Any]]:
        """Return a job per shard; those of a split are consecutive."""
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

    def _shards(self, task: pieces.Task, jobs: Sequence[Message], execute: Execute, lock: int) -> list[Message]:
        """Make the missing shards, and delete pieces that are copied; return the result of each."""
        missing = [job for job in jobs if pieces.result(self._directory, job) is None]
        wanted = Counter(source for job in missing for source in _sources(job))
        for source in {source for job in jobs for source in _sources(job)} - set(wanted):
            self._free(*source)

        def free(job: Message, result: Message) -> None:
            for source in _sources(job):
                wanted[source] -= 1
                if not wanted[source]:
                    # Two copies of a terabyte may not fit the disk.
                    self._free(*source)

        return self._run_missing("shards", task, jobs, execute, lock, free)

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
        """Add the files besides shards, and rename the dataset to its name."""
        for path in self._dataset.iterdir():
            # A leftover of an interrupted end.
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
        # What cannot be removed now is removed by the next import of the same dataset.
        shutil.rmtree(self._directory, ignore_errors=True)
        return manifest


def _sources(job: Mapping[str, Any]) -> set[tuple[int, str]]:
    return {(unit, job["split"]) for unit, _, _ in job["stretches"]}
