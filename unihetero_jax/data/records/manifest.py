"""Manifest of a stored dataset: how it was made, and every file that belongs to it.

A dataset directory is complete exactly when its manifest is readable and every file that it lists exists with its size:
builders write everything elsewhere and rename the directory last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unihetero_jax.errors import UsageError

MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.model"
SCHEMA_VERSION = 1

# Of each end of a file; and files read at a time, because a mounted bucket takes its time over each.
_SAMPLED_BYTES, _READERS = 4096, 32


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """One file of a dataset.

    Attributes:
        bytes: Size of the file.
        sha256: SHA-256 of its content, in hexadecimal.
    """

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """How a stored dataset was made and what it consists of.

    Attributes:
        name: Name of the dataset, such as ``smart_watch``.
        arguments: Arguments of the builder; the same arguments give the same files.
        counts: Records in each split.
        files: Every file except the manifest itself, by its path relative to the directory.
        schema_version: Version of this layout.
        shards: Records in each shard of a split, in the order of the shards, so that a record is found without opening
            any; empty in datasets of older versions.
        rejected: Counts of records of the input that were left out, by reason.
        escaped: Count of texts in which a literal ``<image>`` became ``< image >``.
        provenance: Options and inputs of an import.
    """

    name: str
    arguments: Mapping[str, Any]
    counts: Mapping[str, int]
    files: Mapping[str, FileEntry]
    schema_version: int = SCHEMA_VERSION
    shards: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    escaped: int = 0
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def describe_files(directory: str | os.PathLike[str], leave_out: Container[str] = ()) -> dict[str, FileEntry]:
    """Return size and hash of every file in a directory except ``leave_out``, by relative path in sorted order."""
    root = Path(directory)
    entries = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.relative_to(root).as_posix() in leave_out:
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries[path.relative_to(root).as_posix()] = FileEntry(path.stat().st_size, digest)
    return entries


def write_manifest(directory: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write the manifest into a directory that is still being built."""
    with (Path(directory) / MANIFEST_FILE).open("w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(manifest), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def load_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a complete dataset and check that its files exist with their sizes.

    Contents are not checked: hashing terabytes at every start would be slow.

    Raises:
        UsageError: The directory or its manifest is missing or broken, or a file is missing or has another size; the
            message names it.
    """
    root = Path(directory)
    path = root / MANIFEST_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["schema_version"]
        if version != SCHEMA_VERSION:
            raise UsageError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}")
        files = {name: FileEntry(**entry) for name, entry in fields["files"].items()}
        manifest = Manifest(**{**fields, "files": files})
    except FileNotFoundError as error:
        what = "no dataset: it has no" if root.is_dir() else "not a directory, so there is no"
        raise UsageError(
            f"{root} is {what} {MANIFEST_FILE}; make it with `unihetero data build` or `unihetero data import`"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} is truncated or no manifest; remove {root} and build it again") from error
    for name, entry in manifest.files.items():
        file = root / name
        if not file.is_file():
            raise UsageError(f"{file} is missing, though {MANIFEST_FILE} lists it")
        if file.stat().st_size != entry.bytes:
            raise UsageError(f"{file} has {file.stat().st_size:,} bytes, {MANIFEST_FILE} says {entry.bytes:,}")
    return manifest


def fingerprint(manifest: Manifest) -> str:
    """Return a digest, in hexadecimal, of the contents of every file of the dataset.

    Provenance is left out, so that the same records imported from another place have the same digest.
    """
    fields = dataclasses.asdict(manifest)
    identity = {name: fields[name] for name in ("name", "arguments", "counts", "files", "schema_version")}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def sampled_digest(directory: Path, manifest: Manifest) -> str:
    """Return a digest of the manifest and of the first and last bytes of every file, which exchanged files change.

    Raises:
        OSError: A file cannot be read.
    """

    def ends(name: str) -> bytes:
        with (directory / name).open("rb", buffering=0) as file:
            first = file.read(_SAMPLED_BYTES)
            file.seek(-min(_SAMPLED_BYTES, manifest.files[name].bytes), os.SEEK_END)
            return hashlib.sha256(first + file.read(_SAMPLED_BYTES)).digest()

    digest = hashlib.sha256(fingerprint(manifest).encode())
    with ThreadPoolExecutor(_READERS) as pool:
        for part in pool.map(ends, sorted(manifest.files)):
            digest.update(part)
    return digest.hexdigest()


def is_complete(directory: str | os.PathLike[str]) -> bool:
    """Return whether the directory holds a complete dataset."""
    try:
        load_manifest(directory)
    except UsageError:
        return False
    return True
