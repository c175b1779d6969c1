"""RowStream: one row of the global batch as an endless stream of packed samples, and its state.

Row r of B draws the positions r, r+B, r+2B, … of the mixture and packs them with a bounded window.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np

from unihetero_jax.data.packing.packed_batch import RowShape
from unihetero_jax.data.packing.slots import Slots, check_fits
from unihetero_jax.data.records.invalid import SKIP_REASONS, InvalidRecord
from unihetero_jax.errors import UsageError

DataState = dict[str, np.ndarray]
# Share of a row that may stay empty before time is spent on filling it.
_WASTE = 0.002
# The first exchange of a row gains most of what is possible, the third next to nothing.
_EXCHANGES = 2
# Samples that may be left out for one row: the share of a filter that drops nearly everything is found here.
_MOST_LEFT_OUT = 100_000

# Samples with their counts in the stream.
_Counted = list[tuple[int, Slots]]
_count = itemgetter(0)
# Per sample of a row, the reason why it cannot be used, if any.
Reasons = Sequence[InvalidRecord | None]


@dataclass
class RowStream:
    """One row of the global batch: an endless stream of samples, packed with a bounded window of waiting samples.

    A row is filled first-fit, the oldest pending sample first, until the window is full of waiting samples; then
    exchanges between the row and the waiting samples fill what is left of it.

    ``drawn``, ``pending`` and ``skipped`` are the whole state: the same positions give the same rows, wherever the
    stream runs.

    Attributes:
        shape: Shape of the row.
        window: Most samples that may wait for a later row.
        fetch: Returns the samples of some counts, or why they cannot be used.
        on_skip: Called with the count of a skipped sample and the reason.
        drawn: Number of samples drawn so far; sample n of row r is position r + n·B of the mixture.
        pending: Counts of the samples that are drawn and not yet packed, oldest first.
        skipped: Number of skipped samples by reason.
        group: Samples that are fetched together.
    """

    shape: RowShape
    window: int
    fetch: Callable[[Sequence[int]], Sequence[Slots | InvalidRecord]]
    on_skip: Callable[[int, InvalidRecord], None]
    drawn: int = 0
    pending: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=lambda: [0] * len(SKIP_REASONS))
    group: int = 1
    _waiting: dict[int, Slots] = field(default_factory=dict)  # samples of `pending`, fetched again after a restore
    _ahead: dict[int, Slots | InvalidRecord] = field(default_factory=dict)  # fetched, and not yet drawn
    _draws: int = 1  # draws of the last row
    _bad: dict[int, InvalidRecord] = field(default_factory=dict)  # reported, and not yet counted

    def __post_init__(self) -> None:
        # A state may have been saved when there were fewer reasons.
        self.skipped += [0] * (len(SKIP_REASONS) - len(self.skipped))

    def read_ahead(self) -> None:
        """Fetch what the next row will probably draw: as much as the last one did."""
        wanted = [count for count in self.pending if count not in self._waiting]
        wanted += [count for count in range(self.drawn, self.drawn + self._draws) if count not in self._ahead]
        if wanted:
            self._ahead |= dict(zip(wanted, self.fetch(wanted), strict=True))

    def next_row(self, finish: Callable[[Sequence[Slots]], Reasons] | None = None) -> list[Slots]:
        """Return the samples of the next row, oldest first: at least one, with the oldest pending one among them.

        Args:
            finish: Does the expensive part of the work, for the samples that made it into the row only, and returns
                why each cannot be used, if so. Such samples are left out, and the row is packed again as if they had
                never existed.
        """
        drawn, known = self.drawn, dict(self._waiting)
        while True:
            self.drawn = drawn
            row, waiting = self._pack(known)
            reasons = finish([sample for _, sample in row]) if finish else []
            if not any(reasons):
                break
            for (count, _), reason in zip(row, reasons, strict=True):
                if reason is not None:
                    self._leave_out(count, reason)
        # A bad sample that the repeated packing no longer draws is counted later, in its turn.
        for count in [count for count in self._bad if count < self.drawn]:
            self.skipped[SKIP_REASONS.index(self._bad.pop(count).reason)] += 1
        self._draws = self.drawn - drawn
        self._waiting = dict(waiting)
        self.pending = [count for count, _ in waiting]
        return [sample for _, sample in row]

    def _pack(self, known: dict[int, Slots]) -> tuple[_Counted, _Counted]:
        """Return the samples of a row, and those that wait; add drawn samples to ``known``."""
        row: _Counted = []
        waiting: _Counted = []
        free_slots, free_images = self.shape.slots, self.shape.images

        def place(count: int) -> None:
            nonlocal free_slots, free_images
            if count not in known and count not in self._bad:
                self._draw(count, known)
            if count in self._bad:  # perhaps a pending one, which was readable when it was drawn
                return
            sample = known[count]
            slots, images = len(sample), len(sample.images)
            if slots <= free_slots and images <= free_images:
                row.append((count, sample))
                free_slots -= slots
                free_images -= images
            else:
                waiting.append((count, sample))

        for count in self.pending:
            place(count)
        while free_slots > 0 and len(waiting) < self.window:
            self.drawn += 1
            place(self.drawn - 1)
        _exchange(row, waiting, (free_slots, free_images), int(self.shape.slots * _WASTE))
        return row, waiting

    def _draw(self, count: int, known: dict[int, Slots]) -> None:
        if count not in self._ahead:
            # Pending samples are missing only after a restore, and then all of them.
            drawn_now = count == self.drawn - 1
            wanted = range(count, count + self.group) if drawn_now else [*self.pending]
            self._ahead |= dict(zip(wanted, self.fetch(wanted), strict=True))
        sample = self._ahead.pop(count)
        try:
            if isinstance(sample, InvalidRecord):
                raise sample
            check_fits(len(sample), len(sample.images), self.shape.slots, self.shape.images)
            known[count] = sample
        except InvalidRecord as error:
            self._leave_out(count, error)

    def _leave_out(self, count: int, reason: InvalidRecord) -> None:
        self._bad[count] = reason
        if len(self._bad) > _MOST_LEFT_OUT:
            raise UsageError(
                f"{_MOST_LEFT_OUT:,} records were left out for one row, the last one as {reason.reason} ({reason}): "
                "expected a filter that keeps more"
            )
        self.on_skip(count, reason)


def _exchange(row: _Counted, waiting: _Counted, free: Sequence[int], enough: int) -> None:
    """Fill a row better: replace one of its samples by one or two waiting ones if that uses more slots, at most twice.

    The exchange that leaves the fewest slots free goes first. The row's first sample stays, so that none waits
    forever; both lists end in the order in which their samples were drawn.

    Args:
        row: Counts and samples of the row.
        waiting: Counts and samples that did not fit.
        free: Free slots and images of the row.
        enough: So few free slots are not worth another exchange.
    """
    free_slots, free_images = free
    for _ in range(_EXCHANGES):
        if free_slots <= enough or not waiting or len(row) < 2:
            break
        first, second = _pairs(len(waiting))
        lengths, images = _sizes([*waiting, None])
        row_lengths, row_images = _sizes(row[1:])
        gain = (lengths[first] + lengths[second]) - row_lengths[:, None]
        more_images = (images[first] + images[second]) - row_images[:, None]
        gain[(gain > free_slots) | (more_images > free_images)] = 0
        out, pair = divmod(int(gain.argmax()), len(first))
        if gain[out, pair] <= 0:
            break
        free_slots -= int(gain[out, pair])
        free_images -= int(more_images[out, pair])
        chosen = (int(first[pair]), int(second[pair]))
        leaving = row.pop(out + 1)
        row += [waiting[index] for index in chosen if index < len(waiting)]
        waiting[:] = [item for index, item in enumerate(waiting) if index not in chosen]
        waiting.append(leaving)
        waiting.sort(key=_count)
    row.sort(key=_count)


@functools.cache
def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of ``count`` samples, and each sample with none (number ``count``)."""
    return np.triu_indices(count + 1, 1)


def _sizes(samples: Sequence[tuple[int, Slots] | None]) -> np.ndarray:
    """Return slots and images of each sample [2, samples]; None takes neither."""
    sizes = [(len(counted[1]), len(counted[1].images)) if counted else (0, 0) for counted in samples]
    return np.array(sizes).T


def initial_state(batch_size: int, window: int) -> DataState:
    """Return the data state before the first batch, for all B rows of the global batch.

    ``drawn`` [B], ``pending`` [B, window] (−1 where empty), ``skipped`` [B, reasons]: all int32 and counted per row,
    which suffices for 2³¹ samples per row.
    """
    return {
        "drawn": np.zeros(batch_size, np.int32),
        "pending": np.full((batch_size, window), -1, np.int32),
        "skipped": np.zeros((batch_size, len(SKIP_REASONS)), np.int32),
    }


def stream_state(streams: Sequence[RowStream]) -> DataState:
    """Return the state of these streams, as rows of the data state."""
    window = streams[0].window
    pending = [[*stream.pending, *[-1] * (window - len(stream.pending))] for stream in streams]
    return {
        "drawn": np.asarray([stream.drawn for stream in streams], np.int32),
        "pending": np.asarray(pending, np.int32).reshape(len(streams), window),
        "skipped": np.asarray([stream.skipped for stream in streams], np.int32),
    }
