"""Held-out records of Smart Watch.

Its images are independent of each other, so the first records are as good as any others; and they are the same for
every checkpoint and every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.data.smart_watch import IMAGE, Attributes
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.common.held_out import TEST, Requests


def requests(root: Path, image_size: int, limit: int, task: str = "generation") -> Requests:
    """The first requests of the test split.

    Args:
      root: directory of the dataset.
      image_size: pixels per side.
      limit: number of requests, at most.
      task: ``generation``; or ``caption``, whose requests are the questions and whose images are described.

    Raises:
      UsageError: the directory holds no Smart Watch dataset.
    """
    found = list(records(root, task, limit))
    texts = [turns(record) for record in found]
    images, truths = _decoded(found, image_size)
    return Requests([request for (_, request), _ in texts], [phrase for _, (_, phrase) in texts], images, truths)


def watches(root: Path, split: str, image_size: int, limit: int) -> tuple[np.ndarray, list[Attributes]]:
    """The first ``limit`` images of a split, [n, H, W, 3] uint8, and their attributes.

    Raises:
      UsageError: the directory holds no Smart Watch dataset.
    """
    return _decoded(list(records(root, "caption", limit, split)), image_size)


def records(root: Path, task: str, limit: int | None = None, split: str = TEST) -> Iterator[Mapping[str, Any]]:
    """The first records of a task.

    Raises:
      UsageError: the directory holds no Smart Watch dataset.
    """
    source = Dataset(root).split(f"{split}_{task}")
    for number in range(len(source) if limit is None else min(limit, len(source))):
        record = source[number]
        if "attributes" not in record:
            raise UsageError(f"{root}: a record without attributes; expected a Smart Watch dataset")
        yield record


def turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Speaker and text of each turn, without the image's placeholder."""
    said = record["conversations"]
    pairs = zip(said["from"], said["value"], strict=True)
    return [(str(speaker, "utf-8"), str(value, "utf-8").replace(IMAGE, "").strip()) for speaker, value in pairs]


def _decoded(found: list[Mapping[str, Any]], image_size: int) -> tuple[np.ndarray, list[Attributes]]:
    images = np.stack([decode(record["image"], image_size) for record in found])
    return images, [Attributes.from_json(record["attributes"]) for record in found]
