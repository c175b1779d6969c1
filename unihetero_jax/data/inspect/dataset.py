"""``unihetero data inspect DIR``: what a stored dataset holds, printed and drawn."""

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
    """Prints a summary of a dataset and, when asked, draws it.

    Args:
        directory: Any dataset that was built or imported.
        grid: The PNG file to write of training images, with what is said of them.
        histograms: The PNG file to write of lengths and of sizes of images.
        sample: Most records of a split that are read and decoded; the same ones every time.
        as_json: Print one JSON object instead of words.

    Raises:
        UsageError: The directory holds no complete dataset, a shard cannot be read (said after everything else), or a
            picture cannot be written.
    """
    if sample < 1:
        raise UsageError(f"sample={sample} is impossible: expected 1 or more")
    dataset = Dataset(Path(directory))
    tokenizer = find_tokenizer(dataset.root)
    found = measure(dataset, tokenizer, sample)
    shown = [] if as_json else _first_records(dataset, found, _SHOWN_RECORDS)
    numbers = summary.numbers(dataset, found, tokenizer)
    print(json.dumps(numbers, indent=1) if as_json else summary.in_words(dataset, found, tokenizer, shown))
    notes = []
    if grid is not None:
        drawn = _records_with_pictures(dataset, found)
        if not drawn:
            raise UsageError(f"{directory}: no picture of a training split could be decoded, so there is no grid")
        draw = pictures.draw_watches if dataset.manifest.name == "smart_watch" else pictures.draw_cards
        pictures.save(draw(drawn), Path(grid))
        notes.append(f"wrote {len(drawn)} pictures to {grid}")
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
    """Split, number and record of the first few of every split for training that can be read."""
    shown = []
    for split, made in found.items():
        for number in range(min(count, made.records) if split.startswith("train_") else 0):
            try:
                shown.append((split, number, dataset.split(split)[number]))
            except (OSError, ValueError, UsageError):  # counted, and told at the end
                continue
    return shown


def _records_with_pictures(dataset: Dataset, found: Mapping[str, SplitFindings]) -> list[Mapping[str, Any]]:
    """Records whose first picture can be drawn: Smart Watch's first questions, else some of every training split."""
    watches = dataset.manifest.name == "smart_watch"
    splits = {
        split: made.records
        for split, made in found.items()
        if split.startswith("train_") and made.records and (split == "train_vqa" or not watches)
    }
    drawn: list[Mapping[str, Any]] = []
    for place, (split, count) in enumerate(splits.items()):
        wanted = (pictures.CARDS - len(drawn)) // (len(splits) - place)
        # Some may be text only, or broken: more are tried than are wanted.
        tried = range(min(count, wanted)) if watches else sampled_numbers(count, 4 * pictures.CARDS)
        usable = filter(None, (_with_picture(dataset, split, number) for number in tried))
        drawn += itertools.islice(usable, wanted)
    return drawn


def _with_picture(dataset: Dataset, split: str, number: int) -> Mapping[str, Any] | None:
    """A record, if it can be read and drawn."""
    try:
        record = dataset.split(split)[number]
        turn_texts(record)
        pictures.first_picture(record)
        return record
    except (OSError, ValueError, KeyError, IndexError, UsageError):  # InvalidRecord is a ValueError
        return None
