"""What a stored dataset holds, in numbers: counts from its manifest, the rest from a sample of every split."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unihetero_jax.data.packing.sample import TextSegment, conversation_sample
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.manifest import TOKENIZER_FILE
from unihetero_jax.data.records.record import IMAGE_TOKEN
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.data.records.text import MAX_CHARACTERS, read_text
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer import tokenizer_json
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

# Whether a picture can be decoded does not depend on the size that is asked for; a small one is made at once.
_DECODED_SIDE = 32
_SPELLED = {"\n": " ⏎ ", "\t": " ⇥ "}


@dataclass
class SplitFindings:
    """What a split holds; all but the first three of the sampled records.

    Attributes:
        records: Its records.
        shards: Its files.
        bytes: Their size.
        sampled: Numbers of the records that were looked at.
        failures: Of those that cannot be learned from, how many by reason.
        first_failures: By reason, what was wrong with the first.
        broken_shard: What is wrong with the first shard that cannot be read.
        formats: Images by file format.
        sides: Width and height of each image, in pixels.
        images: Images of each record.
        characters: Of all text of each record.
        answers: Characters of what the model learns to say, of each record that has any.
        tokens: Of all text of each record; empty without a tokenizer.
    """

    records: int
    shards: int
    bytes: int
    sampled: Sequence[int] = ()
    failures: Counter[str] = field(default_factory=Counter)
    first_failures: dict[str, str] = field(default_factory=dict)
    broken_shard: str = ""
    formats: Counter[str] = field(default_factory=Counter)
    sides: list[tuple[int, int]] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def fail(self, number: int, reason: str, message: str) -> None:
        """Counts a record that cannot be learned from."""
        self.failures[reason] += 1
        self.first_failures.setdefault(reason, f"record {number}: {message}")

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        widths, heights = zip(*self.sides, strict=True) if self.sides else ((), ())
        return {
            "records": self.records,
            "shards": self.shards,
            "bytes": self.bytes,
            "sampled": len(self.sampled),
            "failures": dict(self.failures),
            "first_failures": self.first_failures,
            "formats": dict(self.formats),
            "images": spread(self.images),
            "width": spread(widths),
            "height": spread(heights),
            "characters": spread(self.characters),
            "answer_characters": spread(self.answers),
            "tokens": spread(self.tokens),
        }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, median, mean and most of some values; None of none."""
    if not values:
        return None
    return {
        "least": min(values),
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "most": max(values),
    }


def find_tokenizer(root: Path) -> Tokenizer | None:
    """The tokenizer beside a dataset, if there is one.

    Raises:
        UsageError: It cannot be read.
    """
    if any((root / name).is_file() for name in (TOKENIZER_FILE, tokenizer_json.FILE)):
        return Tokenizer.load(root / TOKENIZER_FILE)
    return None


def sampled_numbers(count: int, sample: int) -> list[int]:
    """At most ``sample`` numbers below ``count``, spread evenly over all of them, the same ones every time."""
    kept = min(count, sample)
    return [number * count // kept for number in range(kept)]


def measure(dataset: Dataset, tokenizer: Tokenizer | None, sample: int) -> dict[str, SplitFindings]:
    """Looks at every split.

    Args:
        dataset: The dataset.
        tokenizer: Counts tokens; None counts none.
        sample: Most records of a split that are read and decoded.

    Raises:
        UsageError: The manifest contradicts itself.
    """
    return {name: _measure_split(dataset, name, tokenizer, sample) for name in dataset.manifest.counts}


def _measure_split(dataset: Dataset, name: str, tokenizer: Tokenizer | None, sample: int) -> SplitFindings:
    sizes = [entry.bytes for file, entry in dataset.manifest.files.items() if f"-{name}.array_record-" in file]
    findings = SplitFindings(dataset.manifest.counts[name], len(sizes), sum(sizes))
    if not findings.records:
        return findings
    records = dataset.split(name)
    findings.sampled = sampled_numbers(findings.records, sample)
    for number in findings.sampled:
        try:
            record = records[number]
        except (OSError, UsageError) as error:
            findings.fail(number, "unreadable", str(error))
            findings.broken_shard = findings.broken_shard or str(error)
            continue
        except ValueError as error:
            findings.fail(number, "unreadable", str(error))
            continue
        try:
            _measure_record(findings, record, tokenizer)
        except InvalidRecord as error:
            findings.fail(number, error.reason, str(error))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            findings.fail(number, "invalid", f"{type(error).__name__}: {error}")
    return findings


def _measure_record(findings: SplitFindings, record: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
    images = record_images(record)
    findings.images.append(len(images))
    for data in images:
        # What the header says is counted before the pixels are tried: a truncated picture is one of its kind too.
        known = header(data)
        findings.formats[known[0] if known else "unknown"] += 1
        if known:
            findings.sides.append(known[1])
    said = turn_texts(record)
    findings.characters.append(sum(len(text) for _, text in said))
    if answer := sum(len(text) for speaker, text in said if speaker == "gpt"):
        findings.answers.append(answer)
    if (longest := findings.characters[-1]) > MAX_CHARACTERS:
        raise InvalidRecord("too_long", f"{longest} characters; expected at most {MAX_CHARACTERS}")
    if tokenizer is not None:
        turns = record["conversations"]
        pairs = zip(turns["from"], turns["value"], strict=True)
        said_whole = [{"from": read_text(speaker), "value": read_text(value)} for speaker, value in pairs]
        segments = conversation_sample(said_whole, images, tokenizer).segments
        findings.tokens.append(sum(len(part.tokens) for part in segments if isinstance(part, TextSegment)))
    for data in images:
        decode(data, _DECODED_SIDE)


def record_images(record: Mapping[str, Any]) -> list[bytes]:
    """The encoded images of a record, of any dataset."""
    return list(record["images"]) if "images" in record else [record["image"]]


def turn_texts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Speaker and words of each turn, without its pictures.

    Raises:
        InvalidRecord: They are not UTF-8.
    """
    turns = record["conversations"]
    return [
        (read_text(speaker), read_text(value).replace(IMAGE_TOKEN, "").strip())
        for speaker, value in zip(turns["from"], turns["value"], strict=True)
    ]


def visible(text: str) -> str:
    """A text in one line, with what cannot be seen spelled out."""
    return "".join(_SPELLED.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def header(data: bytes) -> tuple[str, tuple[int, int]] | None:
    """Format, and (width, height), that an encoded image says it has; None if it says nothing that is understood."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            return file.format or "unknown", file.size
    except Exception:  # what Pillow raises on bytes that it does not expect is anything
        return None
