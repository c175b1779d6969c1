"""``unihetero data inspect DIR``: the contents of a stored dataset, printed and drawn."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unihetero_jax.data.inspect import histograms as histograms_of
from unihetero_jax.data.inspect import pictures, summary
from unihetero_jax.data.inspect.measure import (
    SplitFindings,
    find_tokenizer,
    measure,
    sampled_numbers,
    turn_texts,
)
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.errors import UsageError

# Reading and decoding this many records takes about a second and gives the lengths to a percent or so.
SAMPLED_RECORDS = 500
_SHOWN_RECORDS = 2


def inspect(
    directory: str | os.PathLike[str],
    grid: str | os.PathLike[str] | None = None,
    histograms: str | os.PathLike[str] | None = None,
    sample: int = SAMPLED_RECORDS,
    as_json: bool = False,
) -> None:
    """Print a summary of a dataset and, if wanted, draw it.

    Args:
        directory: Any dataset that was built or imported.
        grid: PNG file to write, of training images and their texts.
        histograms: PNG file to write, of lengths of texts and sizes of images.
        sample: Most records per split that are read and decoded; the same ones every time.
        as_json: Whether to print one JSON object instead of text.

    Raises:
        UsageError: The directory does not hold a complete dataset, a shard cannot be read (raised after everything
            else), or a file cannot be written.
    """
    if sample < 1:
        raise UsageError(f"sample={sample} is impossible: expected 1 or more")
    dataset = Dataset(Path(directory))
    tokenizer = find_tokenizer(dataset.root)
    found = measure(dataset, tokenizer, sample)
    shown = [] if as_json else _first_records(dataset, found, _SHOWN_RECORDS)
    numbers = summary.numbers(dataset, found, tokenizer)
    print(json.dumps(numbers, indent=1) if as_json else summary.as_text(dataset, found, tokenizer, shown))
    notes = []
    if grid is not None:
        drawn = _records_with_images(dataset, found)
        if not drawn:
            raise UsageError(f"{directory}: no image of a training split could be decoded, so there is no grid")
        draw = pictures.draw_watches if dataset.manifest.name == "smart_watch" else pictures.draw_cards
        pictures.save(draw(drawn), Path(grid))
        notes.append(f"wrote {len(drawn)} images to {grid}")
    if histograms is not None:
        histograms_of.draw(found, dataset.manifest.name, Path(histograms))
        notes.append(f"wrote the histograms to {histograms}")
    if notes and not as_json:
        print("\n" + "\n".join(notes))
    broken = [made.broken_shard for made in found.values() if made.broken_shard]
    if broken:
        failed = sum(made.failures["unreadable"] for made in found.values())
        raise UsageError(f"{failed} of the sampled records cannot be read; the first: {broken[0]}")


def _first_records(dataset: Dataset, found: Mapping[str, SplitFindings], count: int) -> list[tuple[str, int, Any]]:
    """Return split, number and record of the first few readable records of every training split."""
    shown = []
    for split, made in found.items():
        for number in range(min(count, made.records) if split.startswith("train_") else 0):
            try:
                shown.append((split, number, dataset.split(split)[number]))
            except (OSError, ValueError, UsageError):  # counted, and reported at the end
                continue
    return shown


def _records_with_images(dataset: Dataset, found: Mapping[str, SplitFindings]) -> list[Mapping[str, Any]]:
    """Return records whose first image can be drawn: Smart Watch's first questions, or some of every training split."""
    watches = dataset.manifest.name == "smart_watch"
    splits = {
        split: made.records
        for split, made in found.items()
        if split.startswith("train_") and made.records and (split == "train_vqa" or not watches)
    }
    drawn: list[Mapping[str, Any]] = []
    for place, (split, count) in enumerate(splits.items()):
        wanted = (pictures.CARDS - len(drawn)) // (len(splits) - place)
        # Some may have no image, or be broken: try more than are wanted.
        tried = range(min(count, wanted)) if watches else sampled_numbers(count, 4 * pictures.CARDS)
        usable = filter(None, (_with_image(dataset, split, number) for number in tried))
        drawn += itertools.islice(usable, wanted)
    return drawn


def _with_image(dataset: Dataset, split: str, number: int) -> Mapping[str, Any] | None:
    """Return a record, if it can be read and drawn."""
    try:
        record = dataset.split(split)[number]
        turn_texts(record)
        pictures.first_image(record)
        return record
    except (OSError, ValueError, KeyError, IndexError, UsageError):  # InvalidRecord is a ValueError
        return None
