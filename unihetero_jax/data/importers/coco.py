"""Importer of COCO's captions: JSON of images and of annotations, each a caption of one of them (arXiv 1504.00325)."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.data.ingest import json_stream
from unihetero_jax.data.ingest.captions import attribute_text, caption_record, check_prompts, prompts_option, text_of
from unihetero_jax.data.ingest.importer import Importer, Refused, Rejected, attempt, names, option
from unihetero_jax.data.ingest.inputs import (
    check_roots,
    file_sizes,
    find_image,
    read_image,
    roots_option,
    try_images,
)
from unihetero_jax.data.records.record import Record
from unihetero_jax.errors import UsageError


@IMPORTERS.register("coco")
@dataclasses.dataclass(frozen=True)
class CocoImporter(Importer):
    """COCO's captions, any number of files. Each annotation is a record, under the key of its image.

    Attributes:
        files: ``captions_….json``, with ``images`` and ``annotations``.
        test_files: The same, for the test set.
        image_roots: Folders that the images' paths are relative to; the first that has an image is used. By default
            each file's own folder.
        prompts: Phrases that ask for a caption; a record's key decides which it gets.

    Raises:
        UsageError: An option is impossible.
    """

    name = "coco"
    summary = "images and captions in COCO's JSON"
    examples = """
  unihetero data import coco annotations/captions_train2017.json --test_file=annotations/captions_val2017.json \\
      --image_root=train2017,val2017 --out=data/coco"""

    files: Sequence[str] = option(metavar="FILE", help="captions_….json of COCO", positional=True, many=True)
    test_files: Sequence[str] = option(
        (),
        metavar="FILE",
        help="the same for the test set, or several separated by commas (default: --test_share decides)",
        flag="test_file",
        parse=names,
    )
    image_roots: Sequence[str] = roots_option()
    prompts: Sequence[str] = prompts_option()

    def __post_init__(self) -> None:
        if not self.files:
            raise UsageError("no files: expected at least one captions_….json")
        check_roots(self.image_roots)
        check_prompts(self.prompts)

    def provenance(self) -> Mapping[str, Any]:
        """Return JSON of the options, and the files with their sizes."""
        sizes = {"files": file_sizes(self.files), "test_files": file_sizes(self.test_files)}
        return {**dataclasses.asdict(self), **sizes}

    def units(self) -> Sequence[Mapping[str, Any]]:
        """Return stretches of the annotations, of about 64 MB when an image is counted as 100 kB.

        Raises:
            UsageError: A file cannot be read or has no captions, or none of the first images exists.
        """
        units: list[dict[str, Any]] = []
        for part, files in (("train", self.files), ("test", self.test_files)):
            for path in files:
                own = {"file": path, **({"part": part} if self.test_files else {})}
                units += [{**own, **stretch} for stretch in _scan(path)]
        self._try_images(units[0])
        return units

    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """Yield the records of a stretch, in the order of the annotations.

        Raises:
            UsageError: Two images have the same id.
        """
        image_names = _image_names(unit["file"], *unit["images"], os.stat(unit["file"]).st_mtime_ns)
        for number, (line, fields) in enumerate(_annotations(unit), start=unit["first"] + 1):
            place = f"{Path(unit['file']).name}, line {line:,} (annotation {number:,})"
            yield attempt(place, self._record, unit, image_names, fields)

    def _record(self, unit: Mapping[str, Any], image_names: Mapping[int | str, str], fields: Any) -> Record:
        name = _named(image_names, fields)
        caption = text_of(fields, "caption")
        image = read_image(self._find(unit["file"], name), self.max_bytes(unit))
        attributes = attribute_text({key: value for key, value in fields.items() if key != "caption"})
        return caption_record(name, image, caption, self.prompts, attributes)

    def _find(self, path: str, name: str) -> Path:
        return find_image(self.image_roots or (Path(path).parent,), name)

    def _try_images(self, unit: Mapping[str, Any]) -> None:
        image_names = _image_names(unit["file"], *unit["images"], os.stat(unit["file"]).st_mtime_ns)

        def find(fields: Any) -> bool:
            return bool(self._find(unit["file"], _named(image_names, fields)))

        try_images(unit["file"], (fields for _, fields in _annotations(unit)), find, "--image_root=DIR")


def _scan(path: str) -> list[dict[str, Any]]:
    """Return the stretches of a file's annotations, each with ``images``, which is where the images are."""
    images: list[int] = []
    captions = 0

    def annotations() -> Iterator[json_stream.Found]:
        nonlocal captions
        for key, found in json_stream.scan_object(path):
            if key == "images":
                images[:] = [*(images[:1] or [found.start]), found.stop, *(images[2:] or [found.line])]
            elif key == "annotations":
                captions += b'"caption"' in (found.data or b"")
                yield found

    parts = json_stream.stretches(annotations(), lambda _: True)
    if not images or not captions:
        what = "no images" if not images else "no annotations" if not parts else "annotations without captions"
        raise UsageError(f"{path} has {what}: expected captions_….json with 'images' and 'annotations'")
    return [{**part, "images": images} for part in parts]


def _annotations(unit: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    return json_stream.read(unit["file"], "array", unit["start"], unit["stop"], unit["line"])


@functools.lru_cache(4)
def _image_names(path: str, start: int, stop: int, line: int, changed: int) -> Mapping[int | str, str]:
    """Return the file names of the images by their ids; ``changed`` is when the file did.

    An image without them is missing here, and its captions are rejected.
    """
    found: dict[int | str, str] = {}
    for place, fields in json_stream.read(path, "array", start, stop, line):
        identity, name = (fields.get(key) if isinstance(fields, dict) else None for key in ("id", "file_name"))
        if not _is_id(identity) or not isinstance(name, str):
            continue
        if found.setdefault(identity, name) != name:
            raise UsageError(f"{path}, line {place:,}: the image id {identity!r} is there twice, with different files")
    return found


def _is_id(value: Any) -> TypeGuard[int | str]:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _named(image_names: Mapping[int | str, str], fields: Any) -> str:
    """Return the file name of an annotation's image."""
    if isinstance(fields, Refused):
        raise fields
    if not isinstance(fields, dict):
        raise Refused("invalid_record", f"expected a JSON object, got {type(fields).__name__}")
    identity = fields.get("image_id")
    if not _is_id(identity) or identity not in image_names:
        raise Refused("unknown_image", f"image_id: no image has the id {identity!r} and a file_name"[:200])
    return image_names[identity]
