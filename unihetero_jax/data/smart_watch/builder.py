"""Builds a Smart Watch dataset on disk: all of it, or nothing that could be taken for it.

The directory can be opened with ``tfds.builder_from_directory``. Beside the shards and the metadata of TFDS it holds a
tokenizer trained on the training texts, and a manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info as dataset_info_lib
from tqdm import tqdm

from unihetero_jax.data.manifest import (
    MANIFEST_FILE,
    TOKENIZER_FILE,
    Manifest,
    describe_files,
    is_complete,
    load_manifest,
    write_manifest,
)
from unihetero_jax.data.smart_watch import TASKS, conversation, sample_attributes, turn_texts
from unihetero_jax.data.smart_watch.shards import Shard, Written, plan, write_shards
from unihetero_jax.data.smart_watch.tfds import (
    DESCRIPTION,
    NAME,
    SETS,
    VERSION,
    SmartWatch,
    SmartWatchArguments,
    SmartWatchConfig,
    features,
    split_name,
)
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer import Tokenizer

__all__ = [
    "SmartWatch",
    "SmartWatchArguments",
    "SmartWatchConfig",
    "build",
    "is_complete",
    "load_manifest",
]

# Phrasings are few: texts beyond this many images teach the tokenizer nothing new.
_TOKENIZER_IMAGES = 1000
# The workers of a build that was killed hold its lock for a moment after it.
_LOCK_PATIENCE_S = 5.0
_METADATA_FILES = ("dataset_info.json", "features.json", MANIFEST_FILE, TOKENIZER_FILE)


def build(
    out: str | os.PathLike[str],
    num_images: int,
    test_images: int,
    image_size: int = 224,
    seed: int = 0,
    questions: str = "paper",
    vocabulary_size: int = 1024,
    workers: int | None = None,
) -> Manifest:
    """Builds the dataset in the directory ``out``, unless it is there already.

    Everything is written to ``out`` + ``.incomplete`` and renamed at the end. The files do not depend on ``workers``.

    Args:
        out: The directory to make; its parents are made too.
        num_images: Training images.
        test_images: Test images.
        image_size: Side of the images in pixels.
        seed: Seed of everything random.
        questions: ``"paper"`` or ``"all"``, see `unihetero_jax.data.smart_watch.text`.
        vocabulary_size: Most pieces of the tokenizer.
        workers: Processes that draw; the usable cores by default.

    Returns:
        The manifest of the dataset.

    Raises:
        UsageError: An argument is impossible; ``out`` holds something else, or the same dataset with other arguments;
            another build is writing it; or it cannot be written.
    """
    arguments = SmartWatchArguments(num_images, test_images, image_size, seed, questions)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise UsageError(f"workers={workers} is impossible: expected 1 or more")
    recorded = {**dataclasses.asdict(arguments), "vocabulary_size": vocabulary_size}
    target = Path(out).resolve()
    if (existing := _existing(target, recorded)) is not None:
        print(f"{out} is complete already: {_summary(existing)}")
        return existing
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target) as lock:
            # The build that held the lock a moment ago may have finished the work.
            if (existing := _existing(target, recorded)) is None:
                existing = _build_locked(target, arguments, recorded, workers, lock)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename or target}: {error.strerror or error}") from error
    print(f"{out}: {_summary(existing)}")
    return existing


def _build_locked(
    target: Path, arguments: SmartWatchArguments, recorded: dict[str, object], workers: int, lock: int
) -> Manifest:
    """Builds into the neighbour of ``target`` and renames it; this process alone may do so."""
    incomplete = _beside(target, ".incomplete")
    _remove_leftovers(incomplete)
    incomplete.mkdir()
    try:
        # Early, because a vocabulary that is too small is better known before the pictures are drawn.
        vocabulary_size = recorded["vocabulary_size"]
        assert isinstance(vocabulary_size, int)
        Tokenizer.train(_tokenizer_texts(arguments), incomplete / TOKENIZER_FILE, vocabulary_size, phrases=True)
        shards = plan(arguments)
        images = arguments.num_images + arguments.test_images
        with tqdm(total=images, unit="image", disable=not sys.stderr.isatty()) as bar:
            written = write_shards(incomplete, arguments, shards, workers, bar.update, inherited=(lock,))
        _write_metadata(incomplete, arguments, written)
        manifest = Manifest(
            name=NAME,
            arguments=recorded,
            counts={
                split_name(part, task): len(arguments.indices(part)) for part, task in itertools.product(SETS, TASKS)
            },
            files=describe_files(incomplete),
        )
        write_manifest(incomplete, manifest)
        os.rename(incomplete, target)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    print(f"drew {images:,} images in {written.seconds:.1f} s: {images / written.seconds:,.0f} images/s")
    return manifest


def _existing(target: Path, recorded: dict[str, object]) -> Manifest | None:
    """The dataset at ``target``, None when nothing is there, an error when something else is."""
    if not target.exists() and not target.is_symlink():
        return None
    if not target.is_dir():
        raise UsageError(f"{target} exists and is no directory")
    if not any(target.iterdir()):
        return None
    if not (target / MANIFEST_FILE).is_file():
        raise UsageError(f"{target} is not empty and holds no dataset of ours; choose another directory")
    manifest = load_manifest(target)
    if manifest.name != NAME:
        raise UsageError(f"{target} holds the dataset {manifest.name}, not {NAME}; choose another directory")
    for name, value in recorded.items():
        if manifest.arguments.get(name) != value:
            raise UsageError(
                f"{target} was built with {name}={manifest.arguments.get(name)}, not {value}; "
                "choose another directory or remove it"
            )
    return manifest


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _remove_leftovers(incomplete: Path) -> None:
    """Clears away what a killed build left behind, and nothing else."""
    if not incomplete.exists():
        return
    for path in incomplete.iterdir():
        ours = path.name.startswith(f"{NAME}-") or path.name.lstrip(".").startswith(_METADATA_FILES)
        if not ours or path.is_dir():
            raise UsageError(f"{path} is in the way: it is no leftover of an interrupted build; move it elsewhere")
    shutil.rmtree(incomplete)


@contextlib.contextmanager
def _exclusive(target: Path) -> Iterator[int]:
    """Holds the right to build ``target``; the lock ends with the last process that holds its descriptor.

    Yields:
        The descriptor, for the workers to inherit: a new build cannot begin while one of an old build still writes.
    """
    path = _beside(target, ".lock")
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder removes the file before it lets go: what was locked may no longer be at the path.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise UsageError(f"another build is writing {target}; wait for it to end") from None
        os.close(descriptor)
        time.sleep(0.05)
    try:
        yield descriptor
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _tokenizer_texts(arguments: SmartWatchArguments) -> Iterator[str]:
    """Training texts: every turn about the first images."""
    for index in arguments.indices("train")[:_TOKENIZER_IMAGES]:
        attributes = sample_attributes(arguments.seed, index)
        for task in TASKS:
            turns, _ = conversation(attributes, arguments.seed, index, task, arguments.questions)
            yield from turn_texts(turns)


def _write_metadata(directory: Path, arguments: SmartWatchArguments, written: Written) -> None:
    """Writes what TFDS needs to open the directory."""
    info = dataset_info_lib.DatasetInfo(
        builder=dataset_info_lib.DatasetIdentity(
            name=NAME,
            version=tfds.core.Version(VERSION),
            data_dir=os.fspath(directory),
            module_name=SmartWatch.__module__,
            config_name=arguments.questions,
        ),
        description=DESCRIPTION,
        features=features(arguments.image_size),
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    splits = []
    for part, task in itertools.product(SETS, TASKS):
        shards = sorted((shard for shard in written.bytes if shard.part == part), key=_number)
        splits.append(
            tfds.core.SplitInfo(
                name=split_name(part, task),
                shard_lengths=[shard.stop - shard.start for shard in shards],
                num_bytes=sum(written.bytes[shard][task] for shard in shards),
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(directory)


def _number(shard: Shard) -> int:
    return shard.number


def _summary(manifest: Manifest) -> str:
    records = sum(manifest.counts.values())
    size = sum(entry.bytes for entry in manifest.files.values())
    return f"{records:,} records in {len(manifest.counts)} splits, {size / 1e6:,.1f} MB"
