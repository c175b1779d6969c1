"""Smart Watch UI: synthetic watch faces, each with questions, a caption and a request (arXiv 2505.23043).

The attributes, pixels and texts of an image are pure functions of ``(seed, index)``, so any record can be made from its
number alone, in any process and in any order. Each image gives three records, one per task.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from unihetero_jax.data.smart_watch.face import (
    POSITIONS,
    QUESTION_KINDS,
    WEATHERS,
    Attributes,
    draw,
    encode_png,
    sample_attributes,
)
from unihetero_jax.data.smart_watch.text import (
    IMAGE,
    QUESTION_STYLES,
    TASKS,
    color_name,
    conversation,
)

__all__ = [
    "IMAGE",
    "POSITIONS",
    "QUESTION_KINDS",
    "QUESTION_STYLES",
    "TASKS",
    "WEATHERS",
    "Attributes",
    "color_name",
    "conversation",
    "draw",
    "encode_png",
    "record",
    "records",
    "sample_attributes",
    "turn_texts",
]


def record(
    seed: int, index: int, task: str, image_size: int, questions: str, hidden: Collection[str] = ()
) -> dict[str, Any]:
    """Return one record of the dataset.

    Args:
        seed: Seed of the dataset, 0 or more.
        index: Number of the image, from 0; training images come first, test images follow.
        task: One of `TASKS`.
        image_size: Side of the image in pixels.
        questions: One of `QUESTION_STYLES`.
        hidden: Kinds from `QUESTION_KINDS` that questions about the image and its caption leave out.

    Returns:
        ``image`` (PNG bytes), ``task``, ``conversations`` (list of ``{"from", "value"}``), ``kinds`` (the kind of
        each question of a vqa record), ``attributes`` (JSON, see `Attributes.from_json`) and ``index``.
    """
    return records(seed, index, image_size, questions, hidden, tasks=(task,))[0]


def records(
    seed: int,
    index: int,
    image_size: int,
    questions: str,
    hidden: Collection[str] = (),
    tasks: Sequence[str] = TASKS,
) -> list[dict[str, Any]]:
    """Return the records of one image, in the order of ``tasks``; the image is drawn and encoded once."""
    attributes = sample_attributes(seed, index)
    png = encode_png(draw(attributes, image_size))
    stated = attributes.to_json()
    made = []
    for task in tasks:
        turns, kinds = conversation(attributes, seed, index, task, questions, hidden)
        made.append(
            {
                "image": png,
                "task": task,
                "conversations": turns,
                "kinds": kinds,
                "attributes": stated,
                "index": index,
            }
        )
    return made


def turn_texts(turns: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the texts of a conversation, one per turn, without ``<image>``."""
    return [turn["value"].replace(IMAGE, "").strip() for turn in turns]
