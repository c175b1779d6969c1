"""Record: one stored example of any dataset, whatever it was imported from.

Its fields, and their form in a shard (see `unihetero_jax.data.records.example`):

  key                   one text       name of the record within its dataset, such as ``00012/000120034``
  images                n bytes        encoded images (JPEG, PNG, WebP, …) in the order of their ``<image>``
  conversations/from    t texts        speaker of each turn, ``human`` or ``gpt``
  conversations/value   t texts        text of each turn; each ``<image>`` stands for the next image
  task                  one text       one of ``TASKS``; every task has splits of its own, such as ``train_caption``
  attributes            one text       JSON for evaluation; empty where nothing is known

Smart Watch's records have ``image`` instead of ``images``, and a few fields of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from unihetero_jax.data.records.text import read_text

IMAGE_TOKEN = "<image>"
"""Stands for an image: in a human turn an input, in a gpt turn an image to generate."""

Task = Literal["vqa", "caption", "generation", "text", "interleaved"]
# vqa: input images, text is learned. caption: one input image and one text that describes it, so that the pair can be
# reversed. generation: an image answers. text: no image. interleaved: a document, all of it learned.
TASKS: tuple[Task, ...] = ("vqa", "caption", "generation", "text", "interleaved")


class Turn(NamedTuple):
    """Speaker (``human`` or ``gpt``) and text of a turn."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Record:
    """A record before it is stored; the module's table describes the fields."""

    key: str
    images: tuple[bytes, ...]
    conversations: tuple[Turn, ...]
    task: Task
    attributes: str = ""
    place: str = field(default="", compare=False)
    """Where the record stands in the input, for messages; not stored."""


def record_images(record: Mapping[str, Any]) -> list[bytes]:
    """Return the encoded images of a stored record of any dataset."""
    return list(record["images"]) if "images" in record else [record["image"]]


def read_turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return speaker and text of each turn of a stored record, or of a mapping with a list of turns.

    Raises:
        InvalidRecord: A text is not UTF-8.
    """
    turns = record["conversations"]
    if isinstance(turns, Mapping):  # TFDS stores a sequence of dicts as a dict of sequences
        pairs = zip(turns["from"], turns["value"], strict=True)
        return [(read_text(speaker), read_text(value)) for speaker, value in pairs]
    return [(turn["from"], turn["value"]) for turn in turns]


def structure_task(conversations: Sequence[Turn]) -> Task:
    """Return the task that the turns alone suggest: ``generation``, ``vqa`` or ``text``."""
    with_images = {turn.speaker for turn in conversations if IMAGE_TOKEN in turn.text}
    if "gpt" in with_images:
        return "generation"
    return "vqa" if with_images else "text"
