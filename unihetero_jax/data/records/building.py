"""Build a dataset directory: one process at a time, and either complete or not there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info as dataset_info_lib

from unihetero_jax.data.records.manifest import MANIFEST_FILE, Manifest, load_manifest
from unihetero_jax.errors import UsageError

# One record per chunk gives cheap random access; images are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
# The workers of a killed build hold its lock for a moment longer.
_LOCK_TIMEOUT_S = 5.0


class SplitSizes(NamedTuple):
    """Records in each shard of a split, in the order of the shards, and the serialized bytes of all of them."""

    lengths: Sequence[int]
    bytes: int


def existing(target: Path, name: str, arguments: Mapping[str, Any]) -> Manifest | None:
    """Return the manifest of the dataset at ``target``, or None when nothing is there.

    Raises:
        UsageError: Something else is there, or the same dataset made with other arguments; the message names the first
            that differs.
    """
    if not target.exists() and not target.is_symlink():
        return None
    if not target.is_dir():
        raise UsageError(f"{target} exists and is no directory")
    if not any(target.iterdir()):
        return None
    if not (target / MANIFEST_FILE).is_file():
        raise UsageError(f"{target} is not empty and holds no dataset of ours; choose another directory")
    manifest = load_manifest(target)
    if manifest.name != name:
        raise UsageError(f"{target} holds the dataset {manifest.name}, not {name}; choose another directory")
    for key, value in arguments.items():
        # A manifest from before there was such an argument has its default.
        if manifest.arguments.get(key, value) != value:
            raise UsageError(
                f"{target} was built with {key}={manifest.arguments.get(key)}, not {value}; "
                "choose another directory or remove it"
            )
    return manifest


def beside(target: Path, suffix: str) -> Path:
    """Return the path of ``target`` with ``suffix`` appended to its name."""
    return target.with_name(target.name + suffix)


@contextlib.contextmanager
def exclusive(target: Path) -> Iterator[int]:
    """Lock the building of ``target``; the lock ends with the last process that holds its descriptor.

    Yields:
        The descriptor, for workers to inherit: a new build cannot begin while a worker of an old one still writes.

    Raises:
        UsageError: Another build holds the lock.
    """
    path = beside(target, ".lock")
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder removes the file before it unlocks it: the locked file may no longer be at the path.
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


@contextlib.contextmanager
def write_errors() -> Iterator[None]:
    """Raise an OSError for the RuntimeError with which ArrayRecord reports a full disk."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


def shard_file(name: str, split: str, number: int, count: int) -> str:
    """Return the name of a shard's file, as TFDS expects it."""
    return f"{name}-{split}.array_record-{number:05d}-of-{count:05d}"


def write_metadata(
    directory: Path, identity: Mapping[str, str], description: str, features: Any, splits: Mapping[str, SplitSizes]
) -> None:
    """Write the metadata that TFDS needs to open the directory.

    Args:
        directory: Directory of the shards.
        identity: ``name``, ``version`` and ``module_name`` of the dataset, perhaps ``config_name``.
        description: A sentence about the dataset.
        features: A ``tfds.features.FeaturesDict``.
        splits: Sizes of the splits, in the order in which TFDS lists them.
    """
    info = dataset_info_lib.DatasetInfo(
        builder=dataset_info_lib.DatasetIdentity(
            **{**identity, "version": tfds.core.Version(identity["version"])}, data_dir=os.fspath(directory)
        ),
        description=description,
        features=features,
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    infos = [
        tfds.core.SplitInfo(name=name, shard_lengths=list(split.lengths), num_bytes=split.bytes)
        for name, split in splits.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(directory)


def summary(manifest: Manifest) -> str:
    """Format a dataset's size."""
    records = sum(manifest.counts.values())
    size = sum(entry.bytes for entry in manifest.files.values())
    return f"{records:,} records in {len(manifest.counts)} splits, {size / 1e6:,.1f} MB"
