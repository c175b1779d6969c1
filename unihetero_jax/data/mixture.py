"""Mixture: one endless, shuffled, weighted sequence of the records of several sources.

Position → record, without state, so that any position costs the same to reach: which source, which of its records and
every random choice about it are functions of (seed, position) alone.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from unihetero_jax.data.packing.sample import TRANSFORM, Transform
from unihetero_jax.data.records.images import Fit
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.record import IMAGE_TOKEN
from unihetero_jax.data.records.shuffle import index_shuffle
from unihetero_jax.data.records.text import read_text
from unihetero_jax.errors import UsageError

# Sets these draws apart from others that are made of a position.
_STREAM = 0x7A3D

# Of the block cipher that shuffles; grain's own datasets take as many.
_ROUNDS = 4
# Shares are rounded to one in so many; a smaller share gets one all the same.
_TURNS = 1 << 16

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
      share: side of a crop, as a part of the picture's shorter side.
      random: whether crops and flips are drawn; otherwise crops are central and nothing is flipped.
      flip: whether half of the pictures are mirrored.
    """

    name: str
    records: Records
    weight: float
    generation: bool = False
    turned: bool = False
    fit: Fit = "stretch"
    share: float = 1.0
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
        self._counts = [len(entry.records) for entry in self.entries]
        self._turns = _Turns([entry.weight for entry in self.entries])
        self._remember()

    def _remember(self) -> None:
        # A key for each entry and epoch, so that two entries of one length are not shuffled alike.
        names = [entry.name for entry in self.entries]
        self._key = functools.lru_cache(maxsize=4096)(lambda index, epoch: _key(self._seed, names[index], epoch))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_key"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    @property
    def shares(self) -> dict[str, float]:
        """Share of the samples of each entry, by name; they add up to 1."""
        total = sum(entry.weight for entry in self.entries)
        return {entry.name: entry.weight / total for entry in self.entries}

    def place(self, position: int) -> tuple[Entry, int]:
        """The entry, and the number of the record, at a position from 0 on."""
        index, count = self._turns[position]
        epoch, place = divmod(count, self._counts[index])
        number = index_shuffle(place, max_index=self._counts[index] - 1, seed=self._key(index, epoch), rounds=_ROUNDS)
        return self.entries[index], number

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        """The record at a position, as ``data.packing.sample.record_sample`` takes it.

        Raises:
          OSError, ValueError: it cannot be read.
          InvalidRecord: it is to be turned round, and is no caption.
        """
        entry, number = self.place(position)
        record = entry.records[number]
        if not (entry.turned or entry.random or entry.fit != "stretch"):
            return record
        # A hash, because NumPy's generators take longer to make than a sample, and may change between releases.
        drawn = hashlib.blake2b(struct.pack("<3Q", _STREAM, self._seed, position), digest_size=32).digest()
        phrase, across, down, side = struct.unpack("<4Q", drawn)
        if entry.turned:
            record = turn_round(record, REQUESTS[phrase % len(REQUESTS)])
        transform = Transform(entry.fit, share=entry.share)
        if entry.random:
            crop, flip = (across / 2**64, down / 2**64), entry.flip and side % 2 == 1
            transform = Transform(entry.fit, crop, entry.share, flip)
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


class _Turns:
    """Whose turn it is: position → index of an entry, and how many turns it had before. Turns are spread evenly.

    Args:
      weights: of the entries, above 0.
    """

    def __init__(self, weights: Sequence[float]):
        shares = np.asarray(weights, np.float64) / sum(weights)
        counts = next(
            (tried for turns in range(1, 257) if (tried := _whole(shares * turns)) is not None),
            np.maximum(1, np.round(shares * _TURNS)),
        ).astype(np.int64)
        self._counts: list[int] = counts.tolist()
        self._turns = int(counts.sum())
        entry = np.repeat(np.arange(len(counts)), counts)
        before = np.concatenate([np.arange(count) for count in counts])
        order = np.lexsort((entry, (before + 0.5) / counts[entry]))
        self._entry: list[int] = entry[order].tolist()
        self._before: list[int] = before[order].tolist()

    def __getitem__(self, position: int) -> tuple[int, int]:
        cycle, turn = divmod(position, self._turns)
        entry = self._entry[turn]
        return entry, cycle * self._counts[entry] + self._before[turn]


def _whole(counts: np.ndarray) -> np.ndarray | None:
    """The counts as whole numbers, if they are."""
    rounded = np.round(counts)
    return rounded if rounded.min() >= 1 and np.abs(counts - rounded).max() < 1e-9 * counts.max() else None


def _key(seed: int, name: str, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, *name.encode()]).generate_state(1)[0])
