"""Samples → PackedBatch: rows of fixed shape, each the stream of its own positions of the mixture.

PackedBatch is a dict of NumPy arrays, the one contract between data and model. B rows, T slots, K images a row:

  tokens          [B, T] int32    text id; the image-pad id on a visual slot; the pad id (0) on padding
  segment         [B, T] int32    1, 2, … for the samples of a row; 0 is padding; attention never crosses segments
  position        [B, T] int32    restarts at 0 in each segment
  image, patch    [B, T] int32    on a visual slot, which of the row's images and which of its tokens; −1 on text
  text_weight     [B, T] float32  weight of the cross-entropy of tokens[t], predicted at t−1
  visual_weight   [B, T] float32  weight of the visual objectives of slot t, predicted at t−1
  images          [B, K, H, W, 3] uint8; absent where features stand for every tower (``RowShape.pixels``)
  role            [B, K] int8     0 absent, 1 input, 2 target, 3 both
  TOWER_features  [B, K, N, F]    of the towers that are not there, computed before; in the type they were stored in
  skipped         [B, R] int32    records that the row's stream has left out since the run began, by ``SKIP_REASONS``
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from unihetero_jax.data.packing.sample import Planned, Role, Slots, check_room, numbers
from unihetero_jax.data.records.invalid import SKIP_REASONS, InvalidRecord

PackedBatch = dict[str, np.ndarray]
DataState = dict[str, np.ndarray]
# Share of a row that may stay empty before time is spent on filling it.
_WASTE = 0.002
# The first of a row gains most of what there is to gain, the third next to nothing.
_EXCHANGES = 2
# What padding holds, of the arrays with a value a slot.
_PADDING = {
    "tokens": 0,
    "segment": 0,
    "position": 0,
    "image": -1,
    "patch": -1,
    "text_weight": 0.0,
    "visual_weight": 0.0,
}


@dataclass(frozen=True)
class FeatureShape:
    """Features of an image by one tower, such as ``understanding_tower``: N tokens, F wide, of a NumPy type."""

    tower: str
    tokens: int
    width: int
    dtype: str


@dataclass(frozen=True)
class RowShape:
    """Fixed shape of a row: T slots, K images of ``image_size`` pixels a side, and what comes of them beforehand.

    ``pixels``: whether a batch has ``images``. Without, no image is decoded but those without features, whose records
    are left out for the same reasons, so that rows, their order and the data state are the same either way.
    """

    slots: int
    images: int
    image_size: int
    features: tuple[FeatureShape, ...] = ()
    pixels: bool = True


_Sample = TypeVar("_Sample", bound=Slots | Planned)
# Samples with their counts in the stream.
_Counted = list[tuple[int, _Sample]]
# What is wrong with each sample of a row, if anything is.
Reasons = Sequence[InvalidRecord | None]


@dataclass
class RowStream(Generic[_Sample]):
    """One row of the global batch: an endless stream of samples, packed with a bounded window of those that wait.

    A row is filled first-fit, the oldest pending first, until as many wait as the window holds; then exchanges between
    the row and those that wait fill what is left of it.

    Row r draws positions r, r+B, r+2B, … of the mixture. ``drawn`` counts how many it has drawn, ``pending`` holds the
    counts of those drawn and not yet packed (oldest first), ``skipped`` counts the ones left out, by reason. These
    integers are the whole state: the same positions give the same rows, wherever the stream runs.
    """

    shape: RowShape
    window: int
    fetch: Callable[[Sequence[int]], Sequence[_Sample | InvalidRecord]]
    on_skip: Callable[[int, InvalidRecord], None]
    drawn: int = 0
    pending: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=lambda: [0] * len(SKIP_REASONS))
    group: int = 1  # samples that are fetched together
    _held: dict[int, _Sample] = field(default_factory=dict)  # samples of `pending`, made again after a restore
    _ahead: dict[int, _Sample | InvalidRecord] = field(default_factory=dict)  # fetched, and not yet drawn
    _draws: int = 1  # of the last row
    _bad: dict[int, InvalidRecord] = field(default_factory=dict)  # told, and not yet counted

    def __post_init__(self) -> None:
        # A state that was saved when there were fewer reasons.
        self.skipped += [0] * (len(SKIP_REASONS) - len(self.skipped))

    def read_ahead(self) -> None:
        """Fetches what the next row will probably draw: as much as the last one did."""
        wanted = [count for count in self.pending if count not in self._held]
        wanted += [count for count in range(self.drawn, self.drawn + self._draws) if count not in self._ahead]
        if wanted:
            self._ahead |= dict(zip(wanted, self.fetch(wanted), strict=True))

    def next_row(self, finish: Callable[[Sequence[_Sample]], Reasons] | None = None) -> list[_Sample]:
        """The samples of the next row, oldest first; at least one, and the oldest that was pending is among them.

        Args:
          finish: does what is dear, for the samples of a row only, and says what is wrong with each. If anything is,
            these are left out, and the row is packed again as if they had never been there.
        """
        drawn, known = self.drawn, dict(self._held)
        while True:
            self.drawn = drawn
            row, waiting = self._pack(known)
            reasons = finish([sample for _, sample in row]) if finish else []
            if not any(reasons):
                break
            for (count, _), reason in zip(row, reasons, strict=True):
                if reason is not None:
                    self._leave_out(count, reason)
        # One that was drawn and is not drawn any more has its turn, and is counted, later.
        for count in [count for count in self._bad if count < self.drawn]:
            self.skipped[SKIP_REASONS.index(self._bad.pop(count).reason)] += 1
        self._draws = self.drawn - drawn
        self._held = dict(waiting)
        self.pending = [count for count, _ in waiting]
        return [sample for _, sample in row]

    def _pack(self, known: dict[int, _Sample]) -> tuple[_Counted[_Sample], _Counted[_Sample]]:
        """The samples of a row, and those that wait; adds what it draws to ``known``."""
        row: _Counted[_Sample] = []
        waiting: _Counted[_Sample] = []
        free_slots, free_images = self.shape.slots, self.shape.images

        def place(count: int) -> None:
            nonlocal free_slots, free_images
            if count not in known and count not in self._bad:
                self._draw(count, known)
            if count in self._bad:  # perhaps a pending one, that was readable when it was drawn
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

    def _draw(self, count: int, known: dict[int, _Sample]) -> None:
        if count not in self._ahead:
            # Pending ones are missing after a restore alone, and then all of them.
            drawn_now = count == self.drawn - 1
            wanted = range(count, count + self.group) if drawn_now else [*self.pending]
            self._ahead |= dict(zip(wanted, self.fetch(wanted), strict=True))
        sample = self._ahead.pop(count)
        try:
            if isinstance(sample, InvalidRecord):
                raise sample
            check_room(len(sample), len(sample.images), self.shape.slots, self.shape.images)
            known[count] = sample
        except InvalidRecord as error:
            self._leave_out(count, error)

    def _leave_out(self, count: int, reason: InvalidRecord) -> None:
        self._bad[count] = reason
        self.on_skip(count, reason)


def _exchange(row: _Counted[_Sample], waiting: _Counted[_Sample], free: Sequence[int], enough: int) -> None:
    """Fills a row better: one of its samples makes room for one or two of those that wait, if it gains, twice at most.

    The exchange that leaves the fewest slots free goes first. The row's first sample stays, so that none waits for
    ever; both lists end in the order that their samples were drawn in.

    Args:
      row: counts and samples of the row.
      waiting: of those that did not fit.
      free: slots and images that the row has left.
      enough: so few free slots are not worth another exchange.
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
    """Every pair of ``count`` samples, and each of them with none (number ``count``)."""
    return np.triu_indices(count + 1, 1)


def _sizes(samples: Sequence[tuple[int, Slots | Planned] | None]) -> np.ndarray:
    """Slots and images of each; none takes neither."""
    sizes = [(len(made[1]), len(made[1].images)) if made else (0, 0) for made in samples]
    return np.array(sizes).T


def _count(counted: tuple[int, Slots | Planned]) -> int:
    return counted[0]


def pack(rows: Sequence[Sequence[Slots]], shape: RowShape) -> PackedBatch:
    """Lays rows of samples out as the arrays of a packed batch (without ``skipped``)."""
    batch = empty_batch(len(rows), shape)
    for index, row in enumerate(rows):
        fill(batch, index, row, shape)
    return batch


def empty_batch(size: int, shape: RowShape) -> PackedBatch:
    """The arrays of a packed batch of ``size`` rows (without ``skipped``), all of it padding."""
    slots, images = shape.slots, shape.images
    batch: PackedBatch = {
        "tokens": np.zeros((size, slots), np.int32),
        "segment": np.zeros((size, slots), np.int32),
        "position": np.zeros((size, slots), np.int32),
        "image": np.full((size, slots), -1, np.int32),
        "patch": np.full((size, slots), -1, np.int32),
        "text_weight": np.zeros((size, slots), np.float32),
        "visual_weight": np.zeros((size, slots), np.float32),
        "role": np.full((size, images), Role.ABSENT, np.int8),
    }
    if shape.pixels:
        batch["images"] = np.zeros((size, images, shape.image_size, shape.image_size, 3), np.uint8)
    for made in shape.features:
        batch[f"{made.tower}_features"] = np.zeros((size, images, made.tokens, made.width), made.dtype)
    return batch


def batch_bytes(size: int, shape: RowShape) -> int:
    """Bytes of a packed batch of ``size`` rows."""
    return size * sum(array.nbytes for array in empty_batch(1, shape).values())


def fill(batch: PackedBatch, index: int, row: Sequence[Slots], shape: RowShape) -> None:
    """Lays the samples of a row out in row ``index`` of a batch that is empty there, or that it has filled before."""
    fill_slots(batch, index, row, shape)
    if shape.pixels:
        for place, picture in enumerate([picture for sample in row for picture in sample.images]):
            batch["images"][index, place] = picture


def fill_slots(batch: PackedBatch, index: int, row: Sequence[Slots | Planned], shape: RowShape) -> None:
    """``fill``, but for the pixels of the samples' images."""
    arrays = {name: batch[name][index] for name in _PADDING}
    for name, padding in _PADDING.items():
        arrays[name].fill(padding)
    start = images = 0
    roles: list[Role] = []
    for number, sample in enumerate(row, 1):
        end = start + len(sample)
        sample.write(arrays, start, images)
        arrays["segment"][start:end] = number
        arrays["position"][start:end] = numbers(end - start)
        for made in shape.features:
            here = slice(images, images + len(sample.images))
            batch[f"{made.tower}_features"][index, here] = sample.features[made.tower]
        roles += sample.roles
        start, images = end, len(roles)
    # Beyond those that it had, the pixels are black already; to make them so again takes as long as to read a sample.
    before = np.count_nonzero(batch["role"][index])
    if shape.pixels:
        batch["images"][index, images:before] = 0
    for made in shape.features:
        batch[f"{made.tower}_features"][index, images:before] = 0
    batch["role"][index, :images] = roles
    batch["role"][index, images:] = Role.ABSENT


def initial_state(batch_size: int, window: int) -> DataState:
    """The data state before the first batch, for all B rows of the global batch.

    ``drawn`` [B], ``pending`` [B, window] (−1 where empty), ``skipped`` [B, reasons]: all int32, all counted per row,
    so that 2³¹ samples a row fit.
    """
    return {
        "drawn": np.zeros(batch_size, np.int32),
        "pending": np.full((batch_size, window), -1, np.int32),
        "skipped": np.zeros((batch_size, len(SKIP_REASONS)), np.int32),
    }


def stream_state(streams: Sequence[RowStream]) -> DataState:
    """The state of these streams, as rows of the data state."""
    window = streams[0].window
    pending = [[*stream.pending, *[-1] * (window - len(stream.pending))] for stream in streams]
    return {
        "drawn": np.asarray([stream.drawn for stream in streams], np.int32),
        "pending": np.asarray(pending, np.int32).reshape(len(streams), window),
        "skipped": np.asarray([stream.skipped for stream in streams], np.int32),
    }
