"""Build a Smart Watch dataset on disk, complete or not at all.

The directory can be opened with ``tfds.builder_from_directory``. Beside the shards and the metadata of TFDS it has a
tokenizer trained on the training texts, and a manifest.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from tqdm import tqdm

from unihetero_jax.data.packing.processes import usable_cores
from unihetero_jax.data.records.building import SplitSizes, beside, exclusive, existing, summary, write_metadata
from unihetero_jax.data.records.manifest import (
    MANIFEST_FILE,
    TOKENIZER_FILE,
    Manifest,
    describe_files,
    is_complete,
    load_manifest,
    write_manifest,
)
from unihetero_jax.data.smart_watch import TASKS, conversation, sample_attributes, turn_texts
from unihetero_jax.data.smart_watch.tfds_builder import (
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
from unihetero_jax.data.smart_watch.write_shards import Written, plan, write_shards
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

__all__ = [
    "SmartWatch",
    "SmartWatchArguments",
    "SmartWatchConfig",
    "build",
    "is_complete",
    "load_manifest",
]

# There are few phrases: the texts of more images than this do not improve the tokenizer.
_TOKENIZER_IMAGES = 1000
_METADATA_FILES = ("dataset_info.json", "features.json", MANIFEST_FILE, TOKENIZER_FILE)


def build(
    out: str | os.PathLike[str],
    num_images: int,
    test_images: int,
    image_size: int = 224,
    seed: int = 0,
    questions: str = "paper",
    vocabulary_size: int = 1024,
    withheld: str = "",
    told: float = 0.0,
    workers: int | None = None,
) -> Manifest:
    """Build the dataset in the directory ``out``, unless it is there already.

    Everything is written to ``out`` + ``.incomplete`` and renamed at the end. The files do not depend on ``workers``.

    Args:
        out: The directory to make; its parents are made too.
        num_images: Training images.
        test_images: Test images.
        image_size: Side of the images in pixels.
        seed: Seed of everything random.
        questions: ``"paper"``, ``"all"`` or ``"exact"``, see `unihetero_jax.data.smart_watch.text`.
        vocabulary_size: Most pieces of the tokenizer.
        withheld: Kinds of question, separated by commas, that are held out of training, such as
            ``"weather,weather_pos"``; see `SmartWatchArguments`.
        told: Share of the training images that are supervised on them anyway.
        workers: Processes that draw; by default the usable cores.

    Returns:
        The manifest of the dataset.

    Raises:
        UsageError: An argument is impossible; ``out`` holds something else, or the same dataset with other arguments;
            another build is writing it; or it cannot be written.
    """
    arguments = SmartWatchArguments(num_images, test_images, image_size, seed, questions, withheld, told)
    workers = usable_cores() if workers is None else workers
    if workers < 1:
        raise UsageError(f"workers={workers} is impossible: expected 1 or more")
    recorded = {**arguments.recorded(), "vocabulary_size": vocabulary_size}
    target = Path(out).resolve()
    if (found := existing(target, NAME, recorded)) is not None:
        print(f"{out} is complete already: {summary(found)}")
        return found
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target) as lock:
            # The build that held the lock a moment ago may have finished the work.
            if (found := existing(target, NAME, recorded)) is None:
                found = _build_locked(target, arguments, recorded, workers, lock)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename or target}: {error.strerror or error}") from error
    print(f"{out}: {summary(found)}")
    return found


def _build_locked(
    target: Path, arguments: SmartWatchArguments, recorded: dict[str, object], workers: int, lock: int
) -> Manifest:
    """Build beside ``target`` and rename the result; this process holds the lock."""
    incomplete = beside(target, ".incomplete")
    _remove_leftovers(incomplete)
    incomplete.mkdir()
    try:
        # Trained first, so that a vocabulary that is too small is reported before images are drawn.
        vocabulary_size = recorded["vocabulary_size"]
        assert isinstance(vocabulary_size, int)
        Tokenizer.train(_tokenizer_texts(arguments), incomplete / TOKENIZER_FILE, vocabulary_size, phrases=True)
        shards = plan(arguments)
        images = arguments.num_images + arguments.test_images
        with tqdm(total=images, unit="image", disable=not sys.stderr.isatty()) as bar:
            written = write_shards(incomplete, arguments, shards, workers, bar.update, inherited=(lock,))
        splits = _splits(written)
        identity = {
            "name": NAME,
            "version": VERSION,
            "module_name": SmartWatch.__module__,
            "config_name": arguments.questions,
        }
        write_metadata(incomplete, identity, DESCRIPTION, features(arguments.image_size), splits)
        manifest = Manifest(
            name=NAME,
            arguments=recorded,
            counts={name: sum(split.lengths) for name, split in splits.items()},
            files=describe_files(incomplete),
            shards={name: split.lengths for name, split in splits.items()},
        )
        write_manifest(incomplete, manifest)
        os.rename(incomplete, target)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    print(f"drew {images:,} images in {written.seconds:.1f} s: {images / written.seconds:,.0f} images/s")
    return manifest


def _remove_leftovers(incomplete: Path) -> None:
    """Remove the leftovers of a killed build, and nothing else."""
    if not incomplete.exists():
        return
    for path in incomplete.iterdir():
        ours = path.name.startswith(f"{NAME}-") or path.name.lstrip(".").startswith(_METADATA_FILES)
        if not ours or path.is_dir():
            raise UsageError(f"{path} is in the way: it is not a leftover of an interrupted build; move it elsewhere")
    shutil.rmtree(incomplete)


def _tokenizer_texts(arguments: SmartWatchArguments) -> Iterator[str]:
    """Yield training texts: every turn about the first images."""
    for index in arguments.indices("train")[:_TOKENIZER_IMAGES]:
        attributes = sample_attributes(arguments.seed, index)
        for task in TASKS:
            turns, _ = conversation(attributes, arguments.seed, index, task, arguments.questions)
            yield from turn_texts(turns)


def _splits(written: Written) -> dict[str, SplitSizes]:
    """Return the sizes of the splits."""
    splits = {}
    for part, task in itertools.product(SETS, TASKS):
        shards = sorted((shard for shard in written.bytes if shard.part == part), key=attrgetter("number"))
        splits[split_name(part, task)] = SplitSizes(
            [shard.stop - shard.start for shard in shards], sum(written.bytes[shard][task] for shard in shards)
        )
    return splits
