"""Importer of CelebA: each image gives a record of questions, a caption and a request that it answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.data.importers.celeba.files import PARTITIONS, Copy, read_copy
from unihetero_jax.data.importers.celeba.text import ATTRIBUTES, TASKS, conversation
from unihetero_jax.data.ingest.importer import UNIT_BYTES, Importer, Rejected, option
from unihetero_jax.data.records.record import Record, Task
from unihetero_jax.errors import UsageError

_SAMPLED_IMAGES = 16
# CelebA has two test sets; nothing is trained on either.
_PARTS = {"train": ("train",), "test": ("validation", "test")}


@IMPORTERS.register("celeba")
@dataclass(frozen=True)
class CelebaImporter(Importer):
    """CelebA's images, attributes and partition, from a copy on disk.

    Training records come from CelebA's training partition, test records from its validation and test partitions. A
    record's ``attributes`` are JSON of ``present`` (names of attributes), ``partition`` and, for vqa, ``kinds`` (what
    each question is about).

    Attributes:
        source: The folder of the copy.
        seed: Seed of everything random.
        questions: Questions in each vqa record, 1 to 20.

    Raises:
        UsageError: A value is impossible.
    """

    name = "celeba"
    summary = "CelebA's faces with questions, captions and requests made of their attributes"
    examples = """
  unihetero data import celeba downloads/celeba --out=data/celeba --vocabulary_size=1024"""

    source: str = option(
        metavar="FOLDER",
        help="your copy: img_align_celeba, list_attr_celeba and list_eval_partition (.txt, or Kaggle's .csv)",
        positional=True,
        exists="directory",
    )
    seed: int = option(0, metavar="N", help="seed of everything random (default: 0)", parse=int)
    questions: int = option(4, metavar="N", help="questions in each vqa record, 1 to 20 (default: 4)", parse=int)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed={self.seed} is impossible: expected 0 to {2**63 - 1}")
        if not 1 <= self.questions <= len(ATTRIBUTES) // 2:
            raise UsageError(f"questions={self.questions} is impossible: expected 1 to {len(ATTRIBUTES) // 2}")

    def provenance(self) -> Mapping[str, Any]:
        """Return JSON of the options, and the tables with their sizes."""
        copy = read_copy(self.source)
        return {**asdict(self), "inputs": copy.inputs, "images": len(copy.names)}

    def units(self) -> Sequence[Mapping[str, Any]]:
        """Return stretches of the images of a part, of about 64 MB.

        Raises:
            UsageError: The copy is not complete.
        """
        copy = read_copy(self.source)
        sizes = [
            path.stat().st_size for path in map(copy.image, range(len(copy.names))[:_SAMPLED_IMAGES]) if path.exists()
        ]
        step = max(1, UNIT_BYTES * len(sizes) // max(sum(sizes), 1))
        return [
            {"part": part, "start": start, "stop": start + step}
            for part in _PARTS
            for start in range(0, len(_indices(copy, part)), step)
        ]

    def records(self, unit: Mapping[str, Any]) -> Iterator[Record | Rejected]:
        """Yield the records of a stretch: those of an image one after another, in the order of ``TASKS``."""
        copy = read_copy(self.source)
        for index in _indices(copy, unit["part"])[unit["start"] : unit["stop"]]:
            name = copy.names[index]
            key = Path(name).stem
            try:
                data = copy.image(index).read_bytes()
            except OSError as error:
                yield Rejected(key, "missing_image", f"{name}: {error.strerror}")
                continue
            present = [attribute for attribute, there in zip(ATTRIBUTES, copy.present[index], strict=True) if there]
            known = {"present": present, "partition": PARTITIONS[copy.partition[index]]}
            for task in TASKS:
                turns, kinds = conversation(present, self.seed, int(index), task, self.questions)
                attributes = json.dumps({**known, "kinds": kinds} if kinds else known)
                yield Record(key, (data,), turns, cast(Task, task), attributes)


def _indices(copy: Copy, part: str) -> np.ndarray:
    """Return the numbers of the images of the ``"train"`` or the ``"test"`` part."""
    return np.flatnonzero(np.isin(copy.partition, [PARTITIONS.index(name) for name in _PARTS[part]]))
