"""Importer of a folder of images for each class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.data.ingest.captions import (
    LABEL,
    attribute_text,
    caption_record,
    check_label_text,
    check_prompts,
    label_option,
    prompts_option,
)
from unihetero_jax.data.ingest.importer import Importer, Refused, Rejected, attempt, option
from unihetero_jax.data.ingest.inputs import PARTS, check_utf8, find_image, read_image
from unihetero_jax.data.ingest.phrases import read_lines
from unihetero_jax.data.records.record import Record
from unihetero_jax.errors import UsageError

SUFFIXES = frozenset(".jpg .jpeg .png .webp .avif .gif .bmp .ppm .pgm .tif .tiff".split())
# Images of a unit: about 64 MB.
_IMAGES = 640


@IMPORTERS.register("class_folders")
@dataclasses.dataclass(frozen=True)
class ClassFolderImporter(Importer):
    """Images in ``CLASS/…/NAME``, or in ``train/CLASS/…/NAME`` and the like. Every record is a caption.

    Attributes:
        root: The folder of the classes, or of the splits.
        class_names: Lines of a folder's name, a space and the words for it; by default the name itself, in which
            underscores become spaces.
        label_text: Caption for a class; ``{label}`` stands for its words.
        prompts: Phrases that ask for the caption; a record's key decides which it gets.

    Raises:
        UsageError: An option is impossible.
    """

    name = "class_folders"
    summary = "a folder of images for each class, whose name becomes words"
    examples = """
  unihetero data import class_folders photos_by_kind --test_share=0.1 --out=data/kinds
  unihetero data import class_folders imagenet --class_names=LOC_synset_mapping.txt --out=data/imagenet"""

    root: str = option(
        metavar="FOLDER", help="folder of the classes, or of train, val, …", positional=True, exists="directory"
    )
    class_names: Sequence[str] = option(
        (),
        metavar="FILE",
        help="words of the classes, a line each: the folder's name, a space, the words (default: the folders' names)",
        exists="file",
        parse=read_lines,
    )
    label_text: str = label_option()
    prompts: Sequence[str] = prompts_option()

    def __post_init__(self) -> None:
        if not Path(self.root).is_dir():
            raise UsageError(f"{self.root}: no such directory")
        check_label_text(self.label_text)
        check_prompts(self.prompts)
        self._words()

    def provenance(self) -> Mapping[str, Any]:
        """Return JSON of the options, and number and digest of the files' names."""
        names = self._files()
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
        return {**dataclasses.asdict(self), "files": len(names), "names_sha256": digest}

    def units(self) -> Sequence[Mapping[str, Any]]:
        """Return the names of some files each, of one split.

        Raises:
            UsageError: There are no classes, it is unclear what is one, or a folder cannot be read.
        """
        split = self._is_split()
        parts: dict[str, list[str]] = {}
        for name in self._files():
            parts.setdefault(PARTS.get(name.split("/")[0].lower(), "train") if split else "", []).append(name)
        if not any(_class_of(name, split) for names in parts.values() for name in names):
            raise UsageError(f"{self.root} has no folders of images: expected CLASS/NAME.jpg or train/CLASS/NAME.jpg")
        return [
            {"names": names[start : start + _IMAGES], "split": split, **({"part": part} if part else {})}
            for part, names in parts.items()
            for start in range(0, len(names), _IMAGES)
        ]

    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """Yield the records of a unit, in the order of the names."""
        words = self._words()
        for name in unit["names"]:
            place = name.encode(errors="backslashreplace").decode()
            yield attempt(place, self._record, name, words, unit)

    def _record(self, name: str, words: Mapping[str, str], unit: Mapping[str, Any]) -> Record:
        check_utf8(name)
        folder = _class_of(name, unit["split"])
        if (Path(self.root) / name).is_dir():
            raise Refused("linked_folder", "a link to a folder: expected a copy")
        if not folder:
            raise Refused("no_class", "a file outside of the folders of classes")
        if PurePosixPath(name).suffix.lower() not in SUFFIXES:
            raise Refused("not_an_image", f"expected a name that ends in {', '.join(sorted(SUFFIXES))}")
        if words and folder not in words:
            raise Refused("unknown_class", f"--class_names has no line for {folder!r}")
        said = (words.get(folder) or folder.replace("_", " ")).strip()
        if not said:
            raise Refused("empty_text", f"the folder's name {folder!r} is blank")
        image = read_image(find_image((self.root,), name), self.max_bytes(unit))
        caption = self.label_text.replace(LABEL, said)
        return caption_record(name, image, caption, self.prompts, attribute_text({"labels": [folder]}))

    def _words(self) -> dict[str, str]:
        """Return the words of each class that ``class_names`` has."""
        found: dict[str, str] = {}
        for line in self.class_names:
            folder, _, words = line.partition(" ")
            if not words.strip() or folder in found:
                what = "no words behind the folder's name" if not words.strip() else f"{folder!r} is there twice"
                raise UsageError(f"class_names: {line!r}: {what}; expected a line per class, such as 'n01440764 tench'")
            found[folder] = words.strip()
        return found

    def _is_split(self) -> bool:
        """Return whether the folders are splits, rather than classes."""
        folders = [path for path in Path(self.root).iterdir() if path.is_dir()]
        splits = [path for path in folders if path.name.lower() in PARTS]
        nested = [path.name for path in splits if any(inner.is_dir() for inner in path.iterdir())]
        if nested and len(splits) < len(folders):
            other = min(path.name for path in folders if path not in splits)
            raise UsageError(
                f"{self.root}: {nested[0]} looks like a split and {other} like a class; expected only splits or only "
                f"classes (splits are {', '.join(PARTS)})"
            )
        return bool(nested)

    def _files(self) -> list[str]:
        """Return the paths of all files and linked folders below the root, sorted."""

        def fail(error: OSError) -> None:
            raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error

        found: list[str] = []
        for place, folders, files in os.walk(self.root, onerror=fail):
            linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
            found += [Path(place, name).relative_to(self.root).as_posix() for name in (*files, *linked)]
        return sorted(found)


def _class_of(name: str, split: bool) -> str:
    """Return the folder that is the class of a file; empty where there is none."""
    folders = name.split("/")[int(split) : -1]
    return folders[0] if folders else ""
