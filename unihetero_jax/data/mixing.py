"""Mixture: one endless, shuffled, weighted sequence of the records of several sources, as grain datasets.

It maps a position to a record without state, so that any position takes the same time to reach: the source, the record
and every random choice about it are functions of (seed, position) alone.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from unihetero_jax.data.packing.sample import TRANSFORM
from unihetero_jax.data.packing.slots import Transform
from unihetero_jax.data.records.example import parse, serialize
from unihetero_jax.data.records.images import Fit
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.record import IMAGE_TOKEN, Record, read_turns
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.errors import UsageError

# Distinguishes these random numbers from others that are seeded with a position.
_STREAM = 0x7A3D

# Rounds of the block cipher that shuffles, as in grain's own datasets.
_ROUNDS = 4
# Shares are rounded to multiples of one in so many; a smaller share gets one.
_TURNS = 1 << 16
_REVERSED = "/turned"  # seeds the shuffle, and so stays as it is

# Requests for the image of a caption, which replaces {caption}.
REQUESTS = (
    "Draw a picture: {caption}",
    "Generate an image of this: {caption}",
    "Please create an image. {caption}",
    "Show me a picture of the following. {caption}",
    "Paint this: {caption}",
)


class Records(grain.MapDataset):
    """Records as mappings of fields, whatever form they are given in.

    grain's ``MapDataset.source`` counts bytes and seconds, which takes longer than parsing a record.

    Args:
        records: Random access to mappings, `Record` objects or bytes of stored records; a ``grain.MapDataset`` may
            give None for a record that a filter drops.
    """

    def __init__(self, records: Any):
        super().__init__(records if isinstance(records, grain.MapDataset) else ())
        self._records, self._count = records, len(records)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        record = self._records[index % self._count]
        if isinstance(record, Record):
            record = serialize(record)
        return parse(record) if isinstance(record, bytes) else record


def split(root: str | Path, name: str) -> Records:
    """Open a split of a stored dataset, such as ``train_caption``, as a ``grain.MapDataset`` of its records.

    Raises:
        UsageError: The directory does not hold a complete dataset, or it has no such split.
    """
    return Records(Dataset(Path(root).expanduser()).split(name))


@dataclass(frozen=True)
class Source:
    """Entry of a mixture: records, of one task, and what is done with them.

    Attributes:
        name: Name in the mixture, which seeds its shuffle; of a config's sources see `entry_name`.
        records: A ``grain.MapDataset``, or other random access to records.
        weight: Share of the samples, relative to the other entries'.
        generation: Whether its samples ask for images.
        reverse: Whether captions are reversed into requests for their images.
        fit: How an image becomes square.
        share: Side of a crop, as a share of the image's shorter side.
        random: Whether crops and flips are random; otherwise crops are central and nothing is flipped.
        flip: Whether half of the images are mirrored.
    """

    name: str
    records: Any
    weight: float = 1.0
    generation: bool = False
    reverse: bool = False
    fit: Fit = "stretch"
    share: float = 1.0
    random: bool = False
    flip: bool = False

    @property
    def source(self) -> str:
        """Name of its source; empty for a single dataset."""
        return self.name.removesuffix(_REVERSED).rpartition("/")[0]

    @property
    def task(self) -> str:
        """Task of its records, as stored."""
        return self.name.removesuffix(_REVERSED).rpartition("/")[2]


def entry_name(source: str, task: str, reverse: bool) -> str:
    """Return the name of an entry, such as ``coco/caption``."""
    return f"{source}/{task}".lstrip("/") + (_REVERSED if reverse else "")


class Mixture(grain.MapDataset):
    """The records of the entries in training order; each entry is shuffled anew every epoch.

    A record that a filter drops is None, and keeps its turn.

    Args:
        entries: The entries; those with weight 0 or without records are left out.
        seed: Seed of the shuffle and of all random choices.

    Raises:
        UsageError: No entry is left, two have one name, or one is endless.
    """

    def __init__(self, entries: Sequence[Source], seed: int):
        used = (entry for entry in entries if entry.weight > 0 and len(entry.records))
        self.entries = tuple(replace(entry, records=_as_records(entry)) for entry in used)
        super().__init__([entry.records for entry in self.entries])
        if not self.entries:
            raise UsageError("the mixture is empty: expected a source with records and a weight above 0")
        names = [entry.name for entry in self.entries]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"two sources of the mixture are called {twice!r}: expected a name for each")
        self._seed = seed
        self._counts = [len(entry.records) for entry in self.entries]
        self._turns = _Turns([entry.weight for entry in self.entries])

    @property
    def shares(self) -> dict[str, float]:
        """Share of the samples of each entry, by name; they add up to 1."""
        total = sum(entry.weight for entry in self.entries)
        return {entry.name: entry.weight / total for entry in self.entries}

    def place(self, position: int) -> tuple[Source, int]:
        """Return the entry, and the number of the record in it, at a position from 0 on."""
        index, count = self._turns[position]
        epoch, place = divmod(count, self._counts[index])
        entry = self.entries[index]
        key = _key(self._seed, entry.name, epoch)
        return entry, index_shuffle(place, max_index=self._counts[index] - 1, seed=key, rounds=_ROUNDS)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: Any) -> Any:
        """Return the record at a position, as `unihetero_jax.data.packing.sample.record_sample` takes it.

        Raises:
            OSError, ValueError: The record cannot be read.
            InvalidRecord: The record should be reversed, and is no caption.
        """
        if isinstance(position, slice):
            return self.slice(position)
        entry, number = self.place(position)
        record = entry.records[number]
        if record is None or not (entry.reverse or entry.random or entry.fit != "stretch"):
            return record
        # A hash, because constructing NumPy's generators takes longer than a sample, and they may change.
        drawn = hashlib.blake2b(struct.pack("<3Q", _STREAM, self._seed, position), digest_size=32).digest()
        phrase, across, down, side = struct.unpack("<4Q", drawn)
        if entry.reverse:
            record = reverse_caption(record, REQUESTS[phrase % len(REQUESTS)])
        transform = Transform(entry.fit, share=entry.share)
        if entry.random:
            crop, flip = (across / 2**64, down / 2**64), entry.flip and side % 2 == 1
            transform = Transform(entry.fit, crop, entry.share, flip)
        return {**record, TRANSFORM: transform}


def _as_records(entry: Source) -> Records:
    if len(entry.records) == sys.maxsize:
        raise UsageError(f"the source {entry.name!r} is endless: leave out .repeat(), a mixture repeats its sources")
    return entry.records if isinstance(entry.records, Records) else Records(entry.records)


def mixture(sources: Sequence[Source], seed: int = 0) -> Mixture:
    """Mix sources into one endless, shuffled, weighted ``grain.MapDataset`` of records.

    Example:
        >>> mine = grain.MapDataset.source(my_source).map(to_record).filter(good)
        >>> stored = data.split("data/cc12m", "train_caption")
        >>> mix = data.mixture([data.Source("mine", mine, weight=1), data.Source("cc", stored, weight=3)], seed=0)

    Args:
        sources: Each with a name, which seeds its shuffle, and a weight: its share of the samples.
        seed: Seed of the order and of all random choices.

    Raises:
        UsageError: There are no records, two sources have one name, or one is endless.
    """
    return Mixture(sources, seed)


def reverse_caption(record: Mapping[str, Any], request: str) -> dict[str, Any]:
    """Reverse a caption into a request for its image: text → image instead of image → text.

    Args:
        record: A record with one image and one text that describes it.
        request: The request, in which the text replaces ``{caption}``.

    Raises:
        InvalidRecord: The record is not a caption.
    """
    turns = read_turns(record)
    speakers = [speaker for speaker, _ in turns]
    if speakers != ["human", "gpt"]:
        raise InvalidRecord("invalid", f"turns of {', '.join(speakers) or 'nobody'}: only a caption can be reversed")
    caption = turns[1][1].strip()
    if not caption or IMAGE_TOKEN in caption:
        raise InvalidRecord("invalid", "an answer that is no caption cannot be reversed")
    asked = request.replace("{caption}", caption)
    return {**record, "conversations": {"from": ["human", "gpt"], "value": [asked, IMAGE_TOKEN]}}


def with_generation_share(entries: Sequence[Source], share: float) -> list[Source]:
    """Scale the weights so that a share of the samples asks for images; within both kinds, proportions stay.

    Raises:
        UsageError: There are no entries of a kind that should have a share.
    """
    generation = sum(entry.weight for entry in entries if entry.generation)
    understanding = sum(entry.weight for entry in entries if not entry.generation)
    if (share > 0 and not generation) or (share < 1 and not understanding):
        missing = "asks for images" if not generation else "reads images or text"
        raise UsageError(f"generation_share={share}: no source has a record that {missing}")
    factor = {
        True: share / generation if generation else 0.0,
        False: (1.0 - share) / understanding if understanding else 0.0,
    }
    return [replace(entry, weight=entry.weight * factor[entry.generation]) for entry in entries]


class _Turns:
    """Maps a position to the index of an entry, and its number of turns before; turns are spread evenly.

    Args:
        weights: Weights of the entries, above 0.
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
    """Return the counts rounded if they are whole numbers."""
    rounded = np.round(counts)
    return rounded if rounded.min() >= 1 and np.abs(counts - rounded).max() < 1e-9 * counts.max() else None


@functools.lru_cache(4096)
def _key(seed: int, name: str, epoch: int) -> int:
    """Return a key of each entry and epoch, so that two entries of one length are not shuffled alike."""
    return int(np.random.SeedSequence([seed, epoch, *name.encode()]).generate_state(1)[0])
