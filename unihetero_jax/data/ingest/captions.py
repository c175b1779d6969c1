"""Records that importers make of an image and its text."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unihetero_jax.data.ingest.importer import Rejected, escape
from unihetero_jax.data.ingest.phrases import choose
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record, Turn
from unihetero_jax.errors import UsageError


class Refused(Exception):
    """Why a record cannot be imported. ``reason`` is the counter that it falls under."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason

    def of(self, key: str) -> Rejected:
        """As what an importer gives instead of the record."""
        return Rejected(key, self.reason, str(self))


def caption_record(key: str, image: bytes, caption: str, prompts: Sequence[str], attributes: str = "") -> Record:
    """An image that is shown and its caption; the key decides in which words the caption is asked for.

    Raises:
        Refused: The caption is blank.
    """
    return question_record(key, image, choose(prompts, key, "describe"), caption, attributes, caption=True)


def question_record(
    key: str, image: bytes, question: str, answer: str, attributes: str = "", *, caption: bool = False
) -> Record:
    """An image that is shown, a question about it and the answer.

    Raises:
        Refused: The answer is blank.
    """
    if not answer.strip():
        raise Refused("empty_text", "the text is blank")
    turns = (Turn("human", f"{IMAGE_TOKEN}\n{escape(question)}"), Turn("gpt", escape(answer.strip())))
    return Record(key, (image,), turns, "caption" if caption else "vqa", attributes)


def attribute_text(values: Mapping[str, Any]) -> str:
    """JSON of what else is known of a record, in the order of the names; empty where nothing is.

    Bytes are left out, and what JSON has no word for is written as Python prints it.
    """
    kept = _plain(dict(sorted(values.items())))
    return json.dumps(kept, default=str) if kept else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items() if not isinstance(part, bytes)}
    if isinstance(value, list):
        return [_plain(part) for part in value if not isinstance(part, bytes)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses phrasings that could not be asked.

    Raises:
        UsageError: There are none, or one is blank or holds an image.
    """
    if not prompts:
        raise UsageError("no prompts: expected at least one phrasing that asks for a caption")
    for prompt in prompts:
        if not prompt.strip() or IMAGE_TOKEN in prompt:
            raise UsageError(f"the prompt {prompt!r}: expected words and no {IMAGE_TOKEN}")


def read_lines(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The lines of a text file that are not blank, without the spaces around them.

    Raises:
        UsageError: The file cannot be read, or has none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 text: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UsageError(f"{path} has no words: expected one phrase or name a line")
    return found
