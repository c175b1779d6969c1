"""Measure a stored dataset: counts from its manifest, the rest from a sample of every split."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unihetero_jax.data.packing.sample import TextSegment, conversation_segments
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.record import IMAGE_TOKEN, record_images
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.data.records.text import MAX_CHARACTERS, read_text
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.loading import load_tokenizer, tokenizer_files
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

# Whether an image can be decoded does not depend on the size; a small one is fast.
_DECODED_SIDE = 32
_SPELLED = {"\n": " ⏎ ", "\t": " ⇥ "}


@dataclass
class SplitFindings:
    """Findings about a split; all except the first three are about the sampled records.

    Attributes:
        records: Number of records.
        shards: Number of files.
        bytes: Size of the files.
        sampled: Numbers of the records that were read.
        failures: Counts of records that cannot be used, by reason.
        first_failures: Error of the first such record, by reason.
        broken_shard: Error of the first shard that cannot be read.
        formats: Counts of images by file format.
        sides: Width and height of each image, in pixels.
        images: Number of images of each record.
        characters: Characters of all text of each record.
        answers: Characters of the answers of each record that has any.
        tokens: Tokens of all text of each record; empty without a tokenizer.
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
        """Count a record that cannot be used."""
        self.failures[reason] += 1
        self.first_failures.setdefault(reason, f"record {number}: {message}")

    def as_json(self) -> dict[str, Any]:
        """Return the findings as plain numbers."""
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
    """Return least, median, mean and most of some values, or None of none."""
    if not values:
        return None
    return {
        "least": min(values),
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "most": max(values),
    }


def find_tokenizer(root: Path) -> Tokenizer | None:
    """Load the tokenizer of a dataset, if it has one.

    Raises:
        UsageError: It cannot be read.
    """
    return next(map(load_tokenizer, tokenizer_files(root)), None)


def sampled_numbers(count: int, sample: int) -> list[int]:
    """Return at most ``sample`` numbers below ``count``, evenly spaced, the same ones every time."""
    kept = min(count, sample)
    return [number * count // kept for number in range(kept)]


def measure(dataset: Dataset, tokenizer: Tokenizer | None, sample: int) -> dict[str, SplitFindings]:
    """Measure every split.

    Args:
        dataset: The dataset.
        tokenizer: Tokenizer for counting tokens; None counts none.
        sample: Most records per split that are read and decoded.

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
        # Counted before the pixels are decoded: a truncated image has a format and size, too.
        known = header(data)
        findings.formats[known[0] if known else "unknown"] += 1
        if known:
            findings.sides.append(known[1])
    turns = turn_texts(record)
    findings.characters.append(sum(len(text) for _, text in turns))
    if answer := sum(len(text) for speaker, text in turns if speaker == "gpt"):
        findings.answers.append(answer)
    if (longest := findings.characters[-1]) > MAX_CHARACTERS:
        raise InvalidRecord("too_long", f"{longest} characters; expected at most {MAX_CHARACTERS}")
    if tokenizer is not None:
        stored = record["conversations"]
        pairs = zip(map(read_text, stored["from"]), map(read_text, stored["value"]), strict=True)
        segments = conversation_segments(list(pairs), images, tokenizer)
        findings.tokens.append(sum(len(part.tokens) for part in segments if isinstance(part, TextSegment)))
    for data in images:
        decode(data, _DECODED_SIDE)


def turn_texts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return speaker and text of each turn, without ``<image>``.

    Raises:
        InvalidRecord: They are not UTF-8.
    """
    turns = record["conversations"]
    return [
        (read_text(speaker), read_text(value).replace(IMAGE_TOKEN, "").strip())
        for speaker, value in zip(turns["from"], turns["value"], strict=True)
    ]


def visible(text: str) -> str:
    """Return a text on one line, with invisible characters spelled out."""
    return "".join(_SPELLED.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def header(data: bytes) -> tuple[str, tuple[int, int]] | None:
    """Return format and (width, height) from the header of an encoded image; None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            return file.format or "unknown", file.size
    except Exception:  # Pillow may raise anything on unexpected bytes
        return None
