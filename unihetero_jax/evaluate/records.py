"""What is asked of a model: questions and requests from the test splits of Smart Watch, packed rows of any dataset.

Images of Smart Watch are independent of each other, so that its first records are as good as any others; and they are
the same for every checkpoint and every run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unihetero_jax.config import Config, visual_tokens
from unihetero_jax.data.mixture import Entry, Mixture
from unihetero_jax.data.packing.packed_batch import PackedBatch, RowShape, pack
from unihetero_jax.data.packing.sample import record_sample
from unihetero_jax.data.packing.slots import Role, Slots
from unihetero_jax.data.pipeline import open_entries, row_shape
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.data.smart_watch import IMAGE, Attributes
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.generation import Requests
from unihetero_jax.evaluate.vqa import GROUPS, Question
from unihetero_jax.model.stored_features import open_features
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

SPLIT = "test"

# Of the order of held-out rows: not the run's seed, so that all runs are measured on the same rows.
_ORDER_SEED = 0


def questions(root: Path, image_size: int, limit: int) -> tuple[np.ndarray, list[Question]]:
    """The first questions of each group of kinds.

    Args:
      root: the dataset's directory.
      image_size: pixels a side.
      limit: questions of a group, at most.

    Returns:
      The pictures, [m, H, W, 3] uint8, and questions about them.

    Raises:
      UsageError: the directory holds no Smart Watch dataset.
    """
    group_of = {kind: name for name, kinds in GROUPS.items() for kind in kinds}
    wanted = dict.fromkeys(GROUPS, limit)
    images: list[np.ndarray] = []
    found: list[Question] = []
    for record in _records(root, "vqa"):
        if not any(wanted.values()):
            break
        asked = [text for speaker, text in _turns(record) if speaker == "human"]
        chosen: list[Question] = []
        for kind, text in zip((str(kind, "utf-8") for kind in record["kinds"]), asked, strict=True):
            if wanted[group_of[kind]]:
                wanted[group_of[kind]] -= 1
                chosen.append(Question(kind, text, len(images), Attributes.from_json(record["attributes"])))
        if chosen:
            images.append(decode(record["image"], image_size))
            found += chosen
    return np.stack(images), found


def requests(root: Path, image_size: int, limit: int, task: str = "generation") -> Requests:
    """The first ``limit`` requests, and what should be drawn; of ``caption``, the questions, and what is described.

    Raises:
      UsageError: the directory holds no Smart Watch dataset.
    """
    texts: list[str] = []
    phrases: list[str] = []
    images: list[np.ndarray] = []
    truths: list[Attributes] = []
    for record in _records(root, task, limit):
        (_, request), (_, phrase) = _turns(record)
        texts.append(request)
        phrases.append(phrase)
        images.append(decode(record["image"], image_size))
        truths.append(Attributes.from_json(record["attributes"]))
    return Requests(texts, phrases, np.stack(images), truths)


def watches(root: Path, split: str, image_size: int, limit: int) -> tuple[np.ndarray, list[Attributes]]:
    """The first ``limit`` pictures of a split, [n, H, W, 3] uint8, and what they show.

    Raises:
      UsageError: the directory holds no Smart Watch dataset.
    """
    images: list[np.ndarray] = []
    shown: list[Attributes] = []
    for record in _records(root, "caption", limit, split):
        images.append(decode(record["image"], image_size))
        shown.append(Attributes.from_json(record["attributes"]))
    return np.stack(images), shown


def packed_rows(config: Config, root: Path, tokenizer: Tokenizer) -> dict[str, Iterator[PackedBatch]]:
    """Packed batches of ``config.evaluate.images`` held-out samples of each side that the config learns.

    The tasks of a side are there by how many records they have, not by how often a run learns them, so that losses of
    a side may be compared between runs that differ in that, and in whether they learn the other side. Samples that fit
    no row are left out. All batches have the same number of rows, the last ones of the last batch may be empty.

    Returns:
      Batches by side, ``understanding`` and ``generation``; a side that the config does not learn is not there.

    Raises:
      UsageError: the directory holds no dataset.
    """
    features = open_features(config, root)
    entries, shape = open_entries(config, root, SPLIT, features), row_shape(config, features)
    parts = dict[str, list[Entry]]()
    for entry in entries:
        if entry.weight:
            part = parts.setdefault("generation" if entry.generation else "understanding", [])
            part.append(dataclasses.replace(entry, weight=float(len(entry.records))))
    return {side: _packed(config, tokenizer, part, shape) for side, part in sorted(parts.items(), reverse=True)}


def _packed(config: Config, tokenizer: Tokenizer, entries: list[Entry], shape: RowShape) -> Iterator[PackedBatch]:
    data = config.data
    samples = Mixture(entries, _ORDER_SEED)
    count = min(config.evaluate.images, sum(len(entry.records) for entry in entries))
    shown, drawn = visual_tokens(config)
    per_image = {Role.INPUT: shown, Role.TARGET: drawn, Role.BOTH: drawn}
    input_role = Role.BOTH if data.input_role == "both" else Role.INPUT
    rows: list[list[Slots]] = []
    for position in range(count):
        try:
            sample = record_sample(
                samples[position],
                tokenizer,
                per_image,
                data.image_size,
                input_role=input_role,
                max_pixels=data.max_pixels,
            )
        except (OSError, ValueError, KeyError):  # left out in training, too
            continue
        if not _fits([sample], shape):
            continue
        if rows and _fits([*rows[-1], sample], shape):
            rows[-1].append(sample)
        else:
            rows.append([sample])
    size = min(config.evaluate.batch_size, len(rows))
    for start in range(0, len(rows), max(size, 1)):
        part = rows[start : start + size]
        yield pack([*part, *([] for _ in range(size - len(part)))], shape)


def _fits(samples: list[Slots], shape: RowShape) -> bool:
    return sum(map(len, samples)) <= shape.slots and sum(len(sample.images) for sample in samples) <= shape.images


def _records(root: Path, task: str, limit: int | None = None, split: str = SPLIT) -> Iterator[Mapping[str, Any]]:
    source = Dataset(root).split(f"{split}_{task}")
    for number in range(len(source) if limit is None else min(limit, len(source))):
        record = source[number]
        if "attributes" not in record:
            raise UsageError(f"{root}: a record without attributes; expected a Smart Watch dataset")
        yield record


def _turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Speaker and words of each turn, without the sign for the picture."""
    turns = record["conversations"]
    pairs = zip(turns["from"], turns["value"], strict=True)
    return [(str(speaker, "utf-8"), str(value, "utf-8").replace(IMAGE, "").strip()) for speaker, value in pairs]
