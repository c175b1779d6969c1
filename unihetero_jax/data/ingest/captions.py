"""Records of an image and its text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from unihetero_jax.data.ingest.importer import Refused, escape, option
from unihetero_jax.data.ingest.inputs import check_utf8
from unihetero_jax.data.ingest.phrases import DESCRIBE, choose, read_lines
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record, Turn
from unihetero_jax.errors import UsageError

LABEL = "{label}"


def label_option() -> Any:
    """Declare the option ``label_text``: the caption for a label, with ``{label}`` for its name."""
    text = "caption for a label (default: 'a photo of a {label}')"
    return option("a photo of a {label}", metavar="TEXT", help=text)


def check_label_text(text: str) -> None:
    """Refuse a caption for labels that has no place for one.

    Raises:
        UsageError: ``{label}`` is not there once.
    """
    if text.count(LABEL) != 1:
        raise UsageError(f"label_text={text!r}: expected {LABEL} once")


def prompts_option() -> Any:
    """Declare the option ``prompts``: phrases that ask for a caption, from which a record's key chooses."""
    text = "phrases that ask for a caption, one per line"
    return option(DESCRIBE, metavar="FILE", help=text, exists="file", parse=read_lines)


def caption_record(key: str, image: bytes, caption: str, prompts: Sequence[str], attributes: str = "") -> Record:
    """Make a record of an input image and its caption; the key decides which prompt asks for it.

    Raises:
        Refused: The caption is blank.
    """
    return question_record(key, image, choose(prompts, key, "describe"), caption, attributes, caption=True)


def question_record(
    key: str, image: bytes, question: str, answer: str, attributes: str = "", *, caption: bool = False
) -> Record:
    """Make a record of an input image, a question about it and the answer.

    Raises:
        Refused: The answer is blank.
    """
    if not answer.strip():
        raise Refused("empty_text", "the text is blank")
    turns = (Turn("human", f"{IMAGE_TOKEN}\n{escape(question)}"), Turn("gpt", escape(answer.strip())))
    return Record(key, (image,), turns, "caption" if caption else "vqa", attributes)


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """Return a text of someone's row or record.

    Raises:
        Refused: There is none, or it is something else.
    """
    value = fields.get(name)
    if value is None or value == "":
        raise Refused("missing_text", f"no {name}")
    if not isinstance(value, str):
        raise Refused("invalid_text", f"{name}: expected text, got {value!r}"[:200])
    check_utf8(value)
    return value


def attribute_text(values: Mapping[str, Any]) -> str:
    """Return JSON of other values of a record, in the order of their names; empty where there are none.

    Bytes are left out, and values that JSON does not have are written as ``str``.
    """
    plain = _plain(dict(sorted(values.items())))
    return json.dumps(plain, default=str) if plain else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items() if not isinstance(part, bytes)}
    if isinstance(value, list):
        return [_plain(part) for part in value if not isinstance(part, bytes)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that cannot be asked.

    Raises:
        UsageError: There are none, or one is blank or contains an image.
    """
    if not prompts:
        raise UsageError("no prompts: expected at least one phrase that asks for a caption")
    for prompt in prompts:
        if not prompt.strip() or IMAGE_TOKEN in prompt:
            raise UsageError(f"the prompt {prompt!r}: expected words and no {IMAGE_TOKEN}")
