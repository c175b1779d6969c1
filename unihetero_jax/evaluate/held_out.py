"""What is asked of a model about datasets that are not Smart Watch: questions with answers, and requests for pictures.

Records are taken in a fixed random order, because those of an import lie in the order of its input, where neighbours
may be alike; and it is the same for every checkpoint and every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unihetero_jax.config import Config
from unihetero_jax.data.mixture import Entry, Mixture
from unihetero_jax.data.packing.sample import TRANSFORM
from unihetero_jax.data.packing.slots import STRETCHED
from unihetero_jax.data.pipeline import open_entries, stored_datasets
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.record import IMAGE_TOKEN
from unihetero_jax.data.records.text import clean_text, read_text
from unihetero_jax.data.smart_watch.tfds_builder import NAME
from unihetero_jax.evaluate.generation import Requests

TRAIN, TEST = "train", "test"
ANSWERED = ("vqa", "caption")

_ORDER_SEED = 0
# Training answers that the constant one is chosen among: enough to know which is common, and compared in a second.
_SAMPLE = 1000


@dataclass(frozen=True)
class Asked:
    """n questions: ``images`` [n, H, W, 3] uint8, their words, and the true answers."""

    images: np.ndarray
    questions: list[str]
    truths: list[str]


def smart_watches(config: Config, root: Path) -> dict[str, Path]:
    """The directories of a config's Smart Watch datasets, by the names of its sources.

    Raises:
      UsageError: a dataset is missing or broken.
    """
    return {name: place for name, place in stored_datasets(config, root).items() if load_manifest(place).name == NAME}


def entries(config: Config, root: Path, split: str) -> list[Entry]:
    """What a config learns of a split, and how: of all sources but Smart Watch's.

    Raises:
      UsageError: a dataset is missing or broken.
    """
    watches = smart_watches(config, root)
    return [entry for entry in open_entries(config, root, split) if entry.source not in watches]


def questions(config: Config, entry: Entry) -> Asked | None:
    """The first exchange of ``config.evaluate.questions`` records, at most: those that show one picture.

    Args:
      config: of the run.
      entry: which records.

    Returns:
      None if there is no such record, or the entry's are not about reading a picture.
    """
    if entry.generation or entry.task not in ANSWERED:
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
    return Asked(np.stack(images), asked, truths) if images else None


def training_answers(entry: Entry) -> list[str]:
    """Answers of some training records, to the same kind of question as ``questions`` takes."""
    found = []
    for record in _records(entry, _SAMPLE):
        try:
            if (exchange := _exchange(record)) is not None:
                found.append(exchange[1])
        except InvalidRecord:
            continue
    return found


def requests(config: Config, entry: Entry) -> Requests | None:
    """The requests of ``config.evaluate.images`` records, at most: those of words alone, answered with one picture.

    Args:
      config: of the run.
      entry: which records; captions that are turned round are requests.

    Returns:
      None if there is no such record, or the entry's do not ask for pictures.
    """
    if not entry.generation or not (entry.reverse or entry.task == "generation"):
        return None
    texts, phrases, images = [], [], []
    for record in _records(entry, config.evaluate.images):
        try:
            turns = _turns(record)
            if [text.count(IMAGE_TOKEN) for _, text in turns] == [0, 1]:
                images.append(_picture(config, record))
                texts.append(_said(turns[0][1]))
                phrases.append(_said(turns[1][1]))
        except InvalidRecord:
            continue
    return Requests(texts, phrases, np.stack(images)) if images else None


def _records(entry: Entry, limit: int) -> Iterator[Mapping[str, Any]]:
    """The first records in the fixed order; one that cannot be read or turned round is left out, as in training."""
    order = Mixture([replace(entry, random=False, flip=False)], _ORDER_SEED)
    for position in range(min(limit, len(entry.records))):
        try:
            yield order[position]
        except (OSError, ValueError, KeyError):
            continue


def _exchange(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first question and its answer, if the question shows the record's only picture and words answer it."""
    turns = _turns(record)[:2]
    if [(speaker, text.count(IMAGE_TOKEN)) for speaker, text in turns] != [("human", 1), ("gpt", 0)]:
        return None
    question, answer = (_said(text) for _, text in turns)
    return (question, answer) if answer and len(_images(record)) == 1 else None


def _turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    said = record["conversations"]
    return [(read_text(who), read_text(text)) for who, text in zip(said["from"], said["value"], strict=True)]


def _said(text: str) -> str:
    return clean_text(text.replace(IMAGE_TOKEN, " ")).strip()


def _picture(config: Config, record: Mapping[str, Any]) -> np.ndarray:
    fit = record.get(TRANSFORM, STRETCHED).fit
    return decode(_images(record)[0], config.data.image_size, fit=fit, max_pixels=config.data.max_pixels)


def _images(record: Mapping[str, Any]) -> list[bytes]:
    return record["images"] if "images" in record else [record["image"]]
