"""Mixture: one endless, shuffled, weighted sequence of the records of several sources.

Position → record, without state, so that any position costs the same to reach: which source, which of its records and
every random choice about it are functions of (seed, position) alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import grain
import numpy as np

from unihetero_jax.data.images import Fit
from unihetero_jax.data.invalid import InvalidRecord
from unihetero_jax.data.sample import IMAGE_TOKEN, TRANSFORM, Transform
from unihetero_jax.data.text import read_text
from unihetero_jax.errors import UsageError

# Sets these draws apart from others that are made of a position.
_STREAM = 0x7A3D

# What asks for a picture of a caption. The caption stands where {caption} is.
REQUESTS = (
    "Draw a picture: {caption}",
    "Generate an image of this: {caption}",
    "Please create an image. {caption}",
    "Show me a picture of the following. {caption}",
    "Paint this: {caption}",
)


class Records(Protocol):
    """Records by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Entry:
    """Part of a mixture: records that are learned in one way.

    Attributes:
      name: seeds its shuffle; no other entry of the mixture has it.
      records: by number.
      weight: its share of the samples, relative to the other entries'.
      generation: whether its samples ask for pictures.
      turned: whether captions are turned round, into requests for their pictures.
      fit: how a picture becomes square.
      random: whether crops and flips are drawn; otherwise crops are central and nothing is flipped.
      flip: whether half of the pictures are mirrored.
    """

    name: str
    records: Records
    weight: float
    generation: bool = False
    turned: bool = False
    fit: Fit = "stretch"
    random: bool = False
    flip: bool = False


class Mixture:
    """The entries' records in the order that they are learned in; each entry is shuffled anew every epoch.

    Args:
      entries: those with weight 0 or without records are left out.
      seed: of the shuffle and all choices.

    Raises:
      UsageError: nothing is left.
    """

    def __init__(self, entries: Sequence[Entry], seed: int):
        self.entries = tuple(entry for entry in entries if entry.weight > 0 and len(entry.records))
        if not self.entries:
            raise UsageError("the mixture is empty: expected a source with records and a weight above 0")
        names = [entry.name for entry in self.entries]
        assert len(set(names)) == len(names), names
        self._seed = seed
        parts = [
            grain.MapDataset.source(_Numbers(index, len(entry.records)))
            .seed(_entry_seed(seed, entry.name))
            .shuffle()
            .repeat()
            for index, entry in enumerate(self.entries)
        ]
        weights = [entry.weight for entry in self.entries]
        self._places = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=weights)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the samples of each entry, by name; they add up to 1."""
        total = sum(entry.weight for entry in self.entries)
        return {entry.name: entry.weight / total for entry in self.entries}

    def place(self, position: int) -> tuple[Entry, int]:
        """The entry, and the number of the record, at a position from 0 on."""
        index, number = self._places[position]
        return self.entries[index], number

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        """The record at a position, as ``data.sample.record_sample`` takes it.

        Raises:
          OSError, ValueError: it cannot be read.
          InvalidRecord: it is to be turned round, and is no caption.
        """
        entry, number = self.place(position)
        record = entry.records[number]
        if not (entry.turned or entry.flip or entry.fit != "stretch"):
            return record
        draws = np.random.default_rng([_STREAM, self._seed, position])
        if entry.turned:
            record = turn_round(record, REQUESTS[draws.integers(len(REQUESTS))])
        transform = Transform(entry.fit)
        if entry.random:
            across, down = draws.random(2)
            flip = entry.flip and bool(draws.random() < 0.5)
            transform = Transform(entry.fit, (float(across), float(down)), flip=flip)
        return {**record, TRANSFORM: transform}


def turn_round(record: Mapping[str, Any], request: str) -> dict[str, Any]:
    """A caption as a request for its picture: text → image instead of image → text.

    Args:
      record: one picture and one text that describes it.
      request: what is asked; ``{caption}`` stands for the text.

    Raises:
      InvalidRecord: the record is no caption.
    """
    turns = record["conversations"]
    speakers = [read_text(speaker) for speaker in turns["from"]]
    if speakers != ["human", "gpt"]:
        raise InvalidRecord(
            "invalid", f"turns of {', '.join(speakers) or 'nobody'}: only a caption can be turned round"
        )
    caption = read_text(turns["value"][1]).strip()
    if not caption or IMAGE_TOKEN in caption:
        raise InvalidRecord("invalid", "an answer that is no caption cannot be turned round")
    asked = request.replace("{caption}", caption)
    return {**record, "conversations": {"from": ["human", "gpt"], "value": [asked, IMAGE_TOKEN]}}


def with_generation_share(entries: Sequence[Entry], share: float) -> list[Entry]:
    """The entries with weights so that a share of the samples asks for pictures; within both kinds they keep theirs.

    Raises:
      UsageError: there are no entries of a kind that should have a share.
    """
    drawn = sum(entry.weight for entry in entries if entry.generation)
    shown = sum(entry.weight for entry in entries if not entry.generation)
    if (share > 0 and not drawn) or (share < 1 and not shown):
        missing = "asks for pictures" if not drawn else "is read"
        raise UsageError(f"generation_share={share}: no source has a record that {missing}")
    factor = {True: share / drawn if drawn else 0.0, False: (1.0 - share) / shown if shown else 0.0}
    return [replace(entry, weight=entry.weight * factor[entry.generation]) for entry in entries]


class _Numbers:
    """The numbers of an entry's records, with the entry's own."""

    def __init__(self, entry: int, count: int):
        self._entry, self._count = entry, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[int, int]:
        return self._entry, int(number)


def _entry_seed(seed: int, name: str) -> int:
    """A seed of its own for each entry, so that two of one length are not shuffled alike."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0] >> 1)
