"""Held-out data of any dataset: questions with answers, requests for images, packed rows.

Records are taken in a fixed random order, because those of an import lie in the order of its input, where neighbors
may be alike. The order is the same for every checkpoint and every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unihetero_jax.config import Config
from unihetero_jax.data.mixing import Mixture, Source
from unihetero_jax.data.packing.packed_batch import PackedBatch, RowShape, pack
from unihetero_jax.data.packing.sample import TRANSFORM, record_sample
from unihetero_jax.data.packing.slots import STRETCHED, Role, Slots
from unihetero_jax.data.pipeline import open_entries, row_shape, stored_datasets, tokens_per_image
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.record import IMAGE_TOKEN, read_turns
from unihetero_jax.data.records.text import clean_text
from unihetero_jax.data.smart_watch import Attributes
from unihetero_jax.data.smart_watch.tfds_builder import NAME
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

TRAIN, TEST = "train", "test"
_ANSWERED = ("vqa", "caption")

# Not the run's seed, so that all runs are measured on the same records.
_ORDER_SEED = 0
# Training answers that the constant one is chosen among: enough to know which is common, and compared in a second.
_SAMPLE = 1000


@dataclass(frozen=True)
class Questions:
    """Questions about one image each, with answers.

    Attributes:
      images: [n, H, W, 3] uint8.
      questions: n texts.
      truths: the n true answers.
    """

    images: np.ndarray
    questions: list[str]
    truths: list[str]


@dataclass(frozen=True)
class Requests:
    """Requests that are answered with one image each.

    Attributes:
      requests: n texts of the user.
      phrases: n texts of the model before the image.
      images: the true images, [n, H, W, 3] uint8.
      truths: attributes of the true images, of watches; none of other images.
    """

    requests: Sequence[str]
    phrases: Sequence[str]
    images: np.ndarray
    truths: Sequence[Attributes] = ()


def smart_watches(config: Config, root: Path) -> dict[str, Path]:
    """The directories of a config's Smart Watch datasets, by the names of its sources.

    Raises:
      UsageError: a dataset is missing or broken.
    """
    return {name: place for name, place in stored_datasets(config, root).items() if load_manifest(place).name == NAME}


def entries(config: Config, root: Path, split: str) -> list[Source]:
    """Records of a split that a config trains on, of all sources but Smart Watch's.

    Raises:
      UsageError: a dataset is missing or broken.
    """
    watches = smart_watches(config, root)
    return [entry for entry in open_entries(config, root, split) if entry.source not in watches]


def questions(config: Config, entry: Source) -> Questions | None:
    """The first exchange of at most ``config.evaluate.questions`` records: those with one input image.

    Args:
      config: the run's configuration.
      entry: the records.

    Returns:
      None if there is no such record, or the entry's task is another one.
    """
    if entry.generation or entry.task not in _ANSWERED:
        return None
    images, asked, truths = [], [], []
    for record in _records(entry, config.evaluate.questions):
        try:
            if (exchange := _exchange(record)) is not None:
                images.append(_picture(config, record))
                asked.append(exchange[0])
                truths.append(exchange[1])
        except InvalidRecord:
            continue
    return Questions(np.stack(images), asked, truths) if images else None


def training_answers(entry: Source) -> list[str]:
    """Answers of some training records, to the same kind of question as ``questions`` takes."""
    found = []
    for record in _records(entry, _SAMPLE):
        try:
            if (exchange := _exchange(record)) is not None:
                found.append(exchange[1])
        except InvalidRecord:
            continue
    return found


def requests(config: Config, entry: Source) -> Requests | None:
    """The requests of at most ``config.evaluate.images`` records: text alone, answered with one image.

    Args:
      config: the run's configuration.
      entry: the records; reversed captions are requests.

    Returns:
      None if there is no such record, or the entry's task is another one.
    """
    if not entry.generation or not (entry.reverse or entry.task == "generation"):
        return None
    texts, phrases, images = [], [], []
    for record in _records(entry, config.evaluate.images):
        try:
            turns = read_turns(record)
            if [text.count(IMAGE_TOKEN) for _, text in turns] == [0, 1]:
                images.append(_picture(config, record))
                texts.append(_said(turns[0][1]))
                phrases.append(_said(turns[1][1]))
        except InvalidRecord:
            continue
    return Requests(texts, phrases, np.stack(images)) if images else None


def packed_rows(config: Config, root: Path, tokenizer: Tokenizer) -> dict[str, Iterator[PackedBatch]]:
    """Packed batches of ``config.evaluate.images`` held-out samples of each side that the config trains.

    The tasks of a side are weighted by their number of records and not by the run's own weights, so that losses of a
    side may be compared between runs with other weights, and with runs that do not train the other side. Samples that
    fit no row are left out. All batches have the same number of rows; the last rows of the last one may be empty.

    Returns:
      Batches by side, ``understanding`` and ``generation``; a side that the config does not train is left out.

    Raises:
      UsageError: the directory holds no dataset.
    """
    parts = dict[str, list[Source]]()
    for entry in open_entries(config, root, TEST):
        if entry.weight:
            part = parts.setdefault("generation" if entry.generation else "understanding", [])
            part.append(replace(entry, weight=float(len(entry.records))))
    shape = row_shape(config, None)
    return {side: _packed(config, tokenizer, part, shape) for side, part in sorted(parts.items(), reverse=True)}


def _packed(config: Config, tokenizer: Tokenizer, entries: list[Source], shape: RowShape) -> Iterator[PackedBatch]:
    data = config.data
    samples = Mixture(entries, _ORDER_SEED)
    count = min(config.evaluate.images, sum(len(entry.records) for entry in entries))
    per_image = tokens_per_image(config)
    input_role = Role.BOTH if data.input_role == "both" else Role.INPUT
    rows: list[list[Slots]] = []
    for position in range(count):
        try:
            if (record := samples[position]) is None:
                continue
            sample = record_sample(
                record, tokenizer, per_image, data.image_size, input_role=input_role, max_pixels=data.max_pixels
            )
        except (OSError, ValueError, KeyError):  # left out in training, too
            continue
        if rows and _fits([*rows[-1], sample], shape):
            rows[-1].append(sample)
        elif _fits([sample], shape):
            rows.append([sample])
    size = min(config.evaluate.batch_size, len(rows))
    for start in range(0, len(rows), max(size, 1)):
        part = rows[start : start + size]
        yield pack([*part, *([] for _ in range(size - len(part)))], shape)


def _fits(samples: list[Slots], shape: RowShape) -> bool:
    return sum(map(len, samples)) <= shape.slots and sum(len(sample.images) for sample in samples) <= shape.images


def _records(entry: Source, limit: int) -> Iterator[Mapping[str, Any]]:
    """The first records in the fixed order; those that training leaves out are left out."""
    order = Mixture([replace(entry, random=False, flip=False)], _ORDER_SEED)
    for position in range(min(limit, len(entry.records))):
        try:
            record = order[position]
        except (OSError, ValueError, KeyError):
            continue
        if record is not None:
            yield record


def _exchange(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first question and its answer, if the question has the record's only image and the answer is text."""
    turns = read_turns(record)[:2]
    if [(speaker, text.count(IMAGE_TOKEN)) for speaker, text in turns] != [("human", 1), ("gpt", 0)]:
        return None
    question, answer = (_said(text) for _, text in turns)
    return (question, answer) if answer and len(_images(record)) == 1 else None


def _said(text: str) -> str:
    return clean_text(text.replace(IMAGE_TOKEN, " ")).strip()


def _picture(config: Config, record: Mapping[str, Any]) -> np.ndarray:
    fit = record.get(TRANSFORM, STRETCHED).fit
    return decode(_images(record)[0], config.data.image_size, fit=fit, max_pixels=config.data.max_pixels)


def _images(record: Mapping[str, Any]) -> list[bytes]:
    return record["images"] if "images" in record else [record["image"]]
