"""Phrasings: which of several a record gets, and files of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from unihetero_jax.data.records.record import IMAGE_TOKEN
from unihetero_jax.errors import UsageError

CAPTION = "{caption}"

REQUESTS = (
    "Generate an image: {caption}",
    "Draw this: {caption}",
    "Create a picture that shows the following. {caption}",
    "Please make an image of this: {caption}",
    "Show me a picture of this: {caption}",
    "Here is a description. {caption} Draw it.",
    "I would like an image that fits this text: {caption}",
    "Paint what is described here: {caption}",
    "Produce an image for this caption: {caption}",
    "{caption}\nTurn this into a picture.",
)
REPLIES = (
    "Here is the image.",
    "Here it is.",
    "Here you go.",
    "This is the picture.",
    "Sure.",
    "Of course.",
    "Done.",
    "This is what you asked for.",
)
DESCRIBE = (
    "Describe this image.",
    "What do you see in the image?",
    "Give a description of the image.",
    "Write a caption for this image.",
    "Please caption the image.",
    "What does the picture show?",
    "Tell me about this image.",
    "Summarize what the image shows.",
)


def choose(options: Sequence[str], key: str, purpose: str) -> str:
    """One of the options, each as likely; decided by a record's key and what the choice is for."""
    word = hashlib.sha256(f"{purpose}\0{key}".encode()).digest()[:8]
    return options[(int.from_bytes(word, "big") * len(options)) >> 64]


def read_phrases(path: str | os.PathLike[str], placeholder: str) -> tuple[str, ...]:
    r"""The phrasings of a text file, one a line, in which ``\n`` stands for a line break; blank lines do not count.

    Raises:
        UsageError: The file cannot be read, is empty, or a line has no placeholder, two of them, or an image.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the phrasings of {path}: {error}") from error
    phrases = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if line.count(placeholder) != 1 or IMAGE_TOKEN in line:
            raise UsageError(f"{path}, line {number}: expected {placeholder} once and no {IMAGE_TOKEN}, got {line!r}")
        phrases.append(line.strip().replace(r"\n", "\n"))
    if not phrases:
        raise UsageError(f"{path} has no phrasings: expected one a line, each with {placeholder}")
    return tuple(phrases)
