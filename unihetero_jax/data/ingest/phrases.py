"""Phrases from which a record gets one, and files of them."""

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


def key_hash(purpose: str, key: str) -> int:
    """Return 64 bits that depend on a record's key and what they are for."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{key}".encode(errors="surrogatepass")).digest()[:8], "big")


def choose(options: Sequence[str], key: str, purpose: str) -> str:
    """Return one of the options, all equally likely, decided by a record's key and what the choice is for."""
    return options[(key_hash(purpose, key) * len(options)) >> 64]


def read_phrases(path: str | os.PathLike[str], placeholder: str) -> tuple[str, ...]:
    r"""Read the phrases of a text file, one per line, in which ``\n`` stands for a line break; skip blank lines.

    Raises:
        UsageError: The file cannot be read or is empty, or a line does not have the placeholder exactly once, or has an
            image.
    """
    return tuple(
        _checked(path, number, line, placeholder).replace(r"\n", "\n") for number, line in _lines(path).items()
    )


def read_lines(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the lines of a text file that are not blank, without surrounding spaces.

    Raises:
        UsageError: The file cannot be read or is empty.
    """
    return tuple(_lines(path).values())


def _lines(path: str | os.PathLike[str]) -> dict[int, str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    found = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    if not found:
        raise UsageError(f"{path} is empty: expected one phrase or name per line")
    return found


def _checked(path: str | os.PathLike[str], number: int, line: str, placeholder: str) -> str:
    if line.count(placeholder) != 1 or IMAGE_TOKEN in line:
        raise UsageError(f"{path}, line {number}: expected {placeholder} once and no {IMAGE_TOKEN}, got {line!r}")
    return line
