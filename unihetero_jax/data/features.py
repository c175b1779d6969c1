"""Precomputed features of a dataset's images: how they are stored, and how they are attached to their records.

A folder, complete or absent: ``features.json`` describes what they are features of (``About``), and for each split of
the dataset, such as ``train_vqa``, there are

  SPLIT.offsets.npy  [records + 1] int64   the images of record r are those from offsets[r] up to offsets[r + 1]
  SPLIT.TOWER.npy    [images, N, F]        one file per tower: N tokens per image, F wide; codes are int32, F = 1

Images that could not be decoded have zeros and are listed; training skips their records, and decodes no images where
every tower has its features.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from unihetero_jax.data.packing.packed_batch import FeatureShape
from unihetero_jax.data.packing.sample import FEATURES, UNDECODABLE
from unihetero_jax.errors import UsageError

FILE = "features.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TowerAbout:
    """One tower.

    Attributes:
        config: The config values that its features depend on, by dotted key.
        digest: Digest of its parameters, if a run on its features does not have them.
        tokens: N, tokens per image.
        width: F, width of a token.
        dtype: Name of the NumPy type.
    """

    config: Mapping[str, Any]
    digest: str | None
    tokens: int
    width: int
    dtype: str


@dataclass(frozen=True)
class SplitAbout:
    """One split: numbers of records and images, and the images, counted from 0, that could not be decoded."""

    records: int
    images: int
    undecodable: Sequence[int] = ()


@dataclass(frozen=True)
class About:
    """Description of a folder of features.

    Attributes:
        dataset: Fingerprint of the dataset.
        towers: Towers by name, such as ``understanding_tower``.
        splits: Splits by name, such as ``train_vqa``.
        files: Bytes of every other file.
        schema_version: Version of this layout.
    """

    dataset: str
    towers: Mapping[str, TowerAbout]
    splits: Mapping[str, SplitAbout]
    files: Mapping[str, int] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


class Features:
    """A folder of features, open for reading.

    Args:
        folder: Folder made by ``unihetero towers features``.
        towers: Names of the towers to read.

    Raises:
        UsageError: It is not such a folder, a file is missing or truncated, or it has no such tower.
    """

    def __init__(self, folder: Path, towers: Sequence[str]):
        self.folder = folder
        self.about = _read(folder)
        for name in towers:
            if name not in self.about.towers:
                raise UsageError(f"{folder}: no features of {name}; it has {', '.join(self.about.towers)}")
        found = {name: self.about.towers[name] for name in towers}
        self.shapes = tuple(FeatureShape(name, tower.tokens, tower.width, tower.dtype) for name, tower in found.items())

    def attach(self, sources: Mapping[str, Any], split: str) -> dict[str, Any]:
        """Attach features to the records of a dataset.

        Args:
            sources: Records by task, from the dataset that the features were computed from.
            split: ``train`` or ``test``.

        Returns:
            Records by task, with the features of their images.

        Raises:
            UsageError: The features are not of these records.
        """
        return {task: self._attach(source, f"{split}_{task}") for task, source in sources.items()}

    def _attach(self, source: Any, split: str) -> _FeaturedSource:
        if split not in self.about.splits:
            raise UsageError(f"{self.folder}: no features of {split!r}; it has {', '.join(self.about.splits)}")
        about = self.about.splits[split]
        if len(source) != about.records:
            raise UsageError(
                f"{self.folder}: features of {about.records} records of {split!r}, which has {len(source)}"
            )
        offsets = self._load(f"{split}.offsets.npy", (about.records + 1,), "int64")
        arrays = {
            shape.tower: self._load(
                f"{split}.{shape.tower}.npy", (about.images, shape.tokens, shape.width), shape.dtype
            )
            for shape in self.shapes
        }
        return _FeaturedSource(source, offsets, arrays, frozenset(about.undecodable))

    def _load(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        path = self.folder / name
        try:
            # An empty file cannot be memory-mapped.
            array: np.ndarray = np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from error
        if array.shape != shape or array.dtype != dtype:
            raise UsageError(f"{path}: {array.dtype}{list(array.shape)}, {FILE} says {dtype}{list(shape)}")
        return array


@dataclass(frozen=True)
class _FeaturedSource:
    """Records with ``FEATURES``, an array [images, N, F] for each tower, and ``UNDECODABLE``.

    Attributes:
        source: The records.
        offsets: Number of the first image of each record [records + 1].
        arrays: Features of all images by tower.
        undecodable: Images, counted from 0, that have none.
    """

    source: Any
    offsets: np.ndarray
    arrays: Mapping[str, np.ndarray]
    undecodable: frozenset[int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        first, last = self.offsets[index : index + 2].tolist()
        return {
            **self.source[index],
            FEATURES: {name: np.array(array[first:last]) for name, array in self.arrays.items()},
            UNDECODABLE: not self.undecodable.isdisjoint(range(first, last)),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself: pickled, they could take more memory than there is.
        arrays = {name: _file_of(array) for name, array in self.arrays.items()}
        return _open_featured, (self.source, _file_of(self.offsets), arrays, self.undecodable)


def _file_of(array: np.ndarray) -> str | np.ndarray:
    """Return the file that an array is mapped from, or an empty array itself, which is not mapped."""
    return os.fspath(array.filename) if isinstance(array, np.memmap) and array.filename else array


def _open_featured(
    source: Any, offsets: str | np.ndarray, arrays: Mapping[str, str | np.ndarray], undecodable: frozenset[int]
) -> _FeaturedSource:
    def opened(stored: str | np.ndarray) -> np.ndarray:
        return np.load(stored, mmap_mode="r", allow_pickle=False) if isinstance(stored, str) else stored

    return _FeaturedSource(
        source, opened(offsets), {name: opened(array) for name, array in arrays.items()}, undecodable
    )


class SplitWriter:
    """Writes the features of one split, record after record, into a folder that is being made.

    Args:
        folder: The folder.
        split: Name of the split, such as ``train_vqa``.
        shapes: Shapes of the features.
    """

    def __init__(self, folder: Path, split: str, shapes: Sequence[FeatureShape]):
        self._offsets_path = folder / f"{split}.offsets.npy"
        self._offsets = [0]
        self._undecodable: list[int] = []
        self._files = {
            shape.tower: _GrowingArray(
                folder / f"{split}.{shape.tower}.npy", (shape.tokens, shape.width), np.dtype(shape.dtype)
            )
            for shape in shapes
        }

    def add_record(self, decoded: Sequence[bool]) -> None:
        """Announce the next record, with whether each of its images could be decoded."""
        first = self._offsets[-1]
        self._offsets.append(first + len(decoded))
        self._undecodable += [first + number for number, good in enumerate(decoded) if not good]

    def add_features(self, features: Mapping[str, np.ndarray]) -> None:
        """Add the features of the next images, [n, N, F] for each tower, in the order of the records."""
        for name, array in features.items():
            self._files[name].extend(array)

    def close(self) -> SplitAbout:
        """Complete the files and return what they contain."""
        counts = {file.close() for file in self._files.values()}
        images = self._offsets[-1]
        assert counts == {images}, f"features of {counts} images, announced {images}"
        np.save(self._offsets_path, np.asarray(self._offsets, np.int64))
        return SplitAbout(len(self._offsets) - 1, images, self._undecodable)

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.abandon()


class _GrowingArray:
    """A ``.npy`` file to which rows are added; their number is written into its header at the end."""

    def __init__(self, path: Path, row: tuple[int, ...], dtype: np.dtype):
        self._row, self._dtype, self._count = row, dtype, 0
        self._file = path.open("wb")
        self._start = self._write_header()

    def _write_header(self) -> int:
        # NumPy pads the header for the largest number of rows, so that it never gets longer.
        about = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, {**about, "shape": (self._count, *self._row)})
        return self._file.tell()

    def extend(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._count += len(rows)

    def close(self) -> int:
        self._file.seek(0)
        assert self._write_header() == self._start
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._count

    def abandon(self) -> None:
        self._file.close()


def write_about(folder: Path, about: About) -> None:
    """Write ``features.json`` into a folder that is otherwise complete."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    text = json.dumps(dataclasses.asdict(dataclasses.replace(about, files=files)), indent=1, sort_keys=True)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def _read(folder: Path) -> About:
    path = folder / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema_version"] != SCHEMA_VERSION:
            raise UsageError(f"{path}: schema version {values['schema_version']}, this program reads {SCHEMA_VERSION}")
        towers = {name: TowerAbout(**tower) for name, tower in values["towers"].items()}
        splits = {name: SplitAbout(**split) for name, split in values["splits"].items()}
        about = About(**{**values, "towers": towers, "splits": splits})
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; expected a folder made by `unihetero towers features`") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path}: truncated, or not made by `unihetero towers features`: {error}") from error
    for name, size in about.files.items():
        file = folder / name
        if not file.is_file():
            raise UsageError(f"{file}: missing, though {FILE} lists it; compute the features again")
        if file.stat().st_size != size:
            raise UsageError(f"{file}: {file.stat().st_size:,} bytes, {FILE} says {size:,}; compute the features again")
    return about
