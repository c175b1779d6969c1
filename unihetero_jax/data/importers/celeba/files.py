"""Read the files of a copy of CelebA, as its authors publish them (``.txt``) or as Kaggle does (``.csv``).

The authors' attribute file has the number of images in its first line, the 40 names in its second, and then a line per
image: ``000001.jpg -1  1 …``. Their partition file has lines such as ``000001.jpg 0``: 0 train, 1 validation, 2 test.
Kaggle's are the same tables with commas and a header line.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unihetero_jax.data.importers.celeba.text import ATTRIBUTES
from unihetero_jax.errors import UsageError

PARTITIONS = ("train", "validation", "test")
_ATTRIBUTE_FILES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
_PARTITION_FILES = ("list_eval_partition.txt", "list_eval_partition.csv")
_IMAGE_FOLDERS = ("img_align_celeba", "img_align_celeba_png", "img_celeba")
_YES_OR_NO = {"1": True, "-1": False, "0": False}


@dataclass(frozen=True)
class Copy:
    """The tables of a copy of CelebA, in the order of its attribute file.

    Attributes:
        names: File names of the images.
        present: [images, 40] bool, in the order of ``ATTRIBUTES``.
        partition: [images] int8, positions in ``PARTITIONS``.
        folder: Where the images are.
        inputs: The files of the tables, relative to the copy, and their sizes.
    """

    names: tuple[str, ...]
    present: np.ndarray
    partition: np.ndarray
    folder: Path
    inputs: dict[str, int]

    def image(self, index: int) -> Path:
        """Return the path of an image; in the authors' lossless copy the names end in ``.png``."""
        file = self.folder / self.names[index]
        return file if file.exists() else file.with_suffix(".png")


@functools.lru_cache(maxsize=2)
def read_copy(source: str) -> Copy:
    """Read the tables of a copy of CelebA.

    Args:
        source: The folder with the files, or with folders of them.

    Raises:
        UsageError: A file is missing, malformed or truncated; the message names the file and the line.
    """
    root = Path(source)
    attributes, partitions = _find(root, _ATTRIBUTE_FILES), _find(root, _PARTITION_FILES)
    names, present = _read_attributes(attributes)
    known = _read_partition(partitions)
    try:
        partition = np.array([known[name] for name in names], np.int8)
    except KeyError as error:
        raise UsageError(f"{partitions} has no line for {error.args[0]}, which {attributes} lists") from error
    inputs = {os.fspath(file.relative_to(root)): file.stat().st_size for file in (attributes, partitions)}
    return Copy(names, present, partition, _find_images(root, names[0]), inputs)


def _folders(root: Path) -> list[Path]:
    try:
        return [root, *sorted(path for path in root.iterdir() if path.is_dir() and path.name not in _IMAGE_FOLDERS)]
    except OSError as error:
        raise UsageError(f"cannot read {root}: {error.strerror}") from error


def _find(root: Path, names: tuple[str, ...]) -> Path:
    for folder in _folders(root):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise UsageError(f"{root} has no {' or '.join(names)}, nor has a folder in it: expected a copy of CelebA")


def _find_images(root: Path, first: str) -> Path:
    folders = [folder / name for folder in _folders(root) for name in _IMAGE_FOLDERS]
    for outer in folders:
        for folder in (outer, outer / outer.name):  # Kaggle's archive has the folder twice
            if any((folder / first).with_suffix(ending).is_file() for ending in (".jpg", ".png")):
                return folder
    there = next((folder for folder in folders if folder.is_dir()), None)
    if there:
        raise UsageError(f"{there} does not hold {first}, the first image of the attribute file")
    raise UsageError(f"{root} has no folder {_IMAGE_FOLDERS[0]} with the images: unpack {_IMAGE_FOLDERS[0]}.zip there")


def _read_attributes(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    lines = _lines(path)
    count = None
    if path.suffix == ".txt":
        number, first = next(lines, (1, [""]))
        if len(first) != 1 or not first[0].isdecimal():
            raise UsageError(f"{path}, line {number}: expected the number of images, got {' '.join(first)[:80]!r}")
        count = int(first[0])
    number, header = next(lines, (2, []))
    header = header[1:] if path.suffix == ".csv" else header
    if sorted(header) != sorted(ATTRIBUTES):
        missing = [name for name in ATTRIBUTES if name not in header]
        what = f"{', '.join(missing[:3])} is missing" if missing else f"there are {len(header)}"
        raise UsageError(f"{path}, line {number}: expected the names of CelebA's {len(ATTRIBUTES)} attributes: {what}")
    order = [header.index(name) for name in ATTRIBUTES]
    names, rows = [], []
    for number, (name, *values) in lines:
        try:
            rows.append([_YES_OR_NO[value] for value in values])
        except KeyError as error:
            raise UsageError(f"{path}, line {number}: expected 1 or -1, got {error.args[0]!r}") from error
        if len(values) != len(header):
            raise UsageError(f"{path}, line {number}: expected {len(header)} values, got {len(values)}")
        names.append(_file_name(path, number, name))
    if not names or (count is not None and count != len(names)):
        wanted = "images" if count is None else f"{count} images, as its first line says"
        raise UsageError(f"{path}: expected {wanted}, got {len(names)}")
    return tuple(names), np.array(rows, bool)[:, order]


def _read_partition(path: Path) -> dict[str, int]:
    known = {}
    for number, fields in _lines(path):
        if number == 1 and fields[-1] == "partition":
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise UsageError(
                f"{path}, line {number}: expected a file name and 0, 1 or 2, got {' '.join(fields)[:80]!r}"
            )
        known[fields[0]] = int(fields[1])
    return known


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of every line that is not blank."""
    separator = "," if path.suffix == ".csv" else None
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, [field.strip() for field in line.strip().split(separator)]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _file_name(path: Path, number: int, name: str) -> str:
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise UsageError(f"{path}, line {number}: expected the name of an image file, got {name!r}")
    return name
