"""Samples → PackedBatch: rows of fixed shape, each the stream of its own positions of the mixture.

PackedBatch is a dict of NumPy arrays, the one contract between data and model. B rows, T slots, K images a row:

  tokens          [B, T] int32    text id; the image-pad id on a visual slot; the pad id (0) on padding
  segment         [B, T] int32    1, 2, … for the samples of a row; 0 is padding; attention never crosses segments
  position        [B, T] int32    restarts at 0 in each segment
  image, patch    [B, T] int32    on a visual slot, which of the row's images and which of its tokens; −1 on text
  text_weight     [B, T] float32  weight of the cross-entropy of tokens[t], predicted at t−1
  visual_weight   [B, T] float32  weight of the visual objectives of slot t, predicted at t−1
  images          [B, K, H, W, 3] uint8
  role            [B, K] int8     0 absent, 1 input, 2 target, 3 both
  TOWER_features  [B, K, N, F]    of the towers that are not there, computed before; in the type they were stored in
  skipped         [B, R] int32    records that the row's stream has left out since the run began, by ``SKIP_REASONS``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from unihetero_jax.data.invalid import SKIP_REASONS, InvalidRecord
from unihetero_jax.data.sample import Role, Slots, check_room

PackedBatch = dict[str, np.ndarray]
DataState = dict[str, np.ndarray]


@dataclass(frozen=True)
class FeatureShape:
    """Features of an image by one tower, such as ``understanding_tower``: N tokens, F wide, of a NumPy type."""

    tower: str
    tokens: int
    width: int
    dtype: str


@dataclass(frozen=True)
class RowShape:
    """Fixed shape of a row: T slots, K images of ``image_size`` pixels a side, and what comes of them beforehand."""

    slots: int
    images: int
    image_size: int
    features: tuple[FeatureShape, ...] = ()


@dataclass
class RowStream:
    """One row of the global batch: an endless stream of samples, packed first-fit with a bounded window.

    Row r draws positions r, r+B, r+2B, … of the mixture. ``drawn`` counts how many it has drawn, ``pending`` holds the
    counts of those drawn and not yet packed (oldest first), ``skipped`` counts the ones left out, by reason. These
    integers are the whole state: the same positions give the same rows, wherever the stream runs.
    """

    shape: RowShape
    window: int
    fetch: Callable[[int], Slots]
    on_skip: Callable[[int, InvalidRecord], None]
    drawn: int = 0
    pending: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=lambda: [0] * len(SKIP_REASONS))
    _held: dict[int, Slots] = field(default_factory=dict)  # samples of `pending`, made again after a restore

    def __post_init__(self) -> None:
        # A state that was saved when there were fewer reasons.
        self.skipped += [0] * (len(SKIP_REASONS) - len(self.skipped))

    def next_row(self) -> list[Slots]:
        """The samples of the next row, oldest pending first; at least one."""
        row: list[Slots] = []
        free_slots, free_images = self.shape.slots, self.shape.images
        waiting: list[int] = []
        for count in self.pending:
            sample = self._held.get(count) or self._sample(count)
            if sample is None:  # readable when it was drawn, and no longer
                continue
            if len(sample) <= free_slots and len(sample.images) <= free_images:
                row.append(sample)
                self._held.pop(count, None)
                free_slots -= len(sample)
                free_images -= len(sample.images)
            else:
                self._held[count] = sample
                waiting.append(count)
        while free_slots > 0 and len(waiting) < self.window:
            count = self.drawn
            self.drawn += 1
            sample = self._sample(count)
            if sample is None:
                continue
            if len(sample) <= free_slots and len(sample.images) <= free_images:
                row.append(sample)
                free_slots -= len(sample)
                free_images -= len(sample.images)
            else:
                self._held[count] = sample
                waiting.append(count)
        self.pending = waiting
        return row

    def _sample(self, count: int) -> Slots | None:
        try:
            sample = self.fetch(count)
            check_room(len(sample), len(sample.images), self.shape.slots, self.shape.images)
            return sample
        except InvalidRecord as error:
            self.skipped[SKIP_REASONS.index(error.reason)] += 1
            self.on_skip(count, error)
            return None


def pack(rows: Sequence[Sequence[Slots]], shape: RowShape) -> PackedBatch:
    """Lays rows of samples out as the arrays of a packed batch (without ``skipped``)."""
    size, slots, images = len(rows), shape.slots, shape.images
    batch: PackedBatch = {
        "tokens": np.zeros((size, slots), np.int32),
        "segment": np.zeros((size, slots), np.int32),
        "position": np.zeros((size, slots), np.int32),
        "image": np.full((size, slots), -1, np.int32),
        "patch": np.full((size, slots), -1, np.int32),
        "text_weight": np.zeros((size, slots), np.float32),
        "visual_weight": np.zeros((size, slots), np.float32),
        "images": np.zeros((size, images, shape.image_size, shape.image_size, 3), np.uint8),
        "role": np.full((size, images), Role.ABSENT, np.int8),
    }
    for made in shape.features:
        batch[f"{made.tower}_features"] = np.zeros((size, images, made.tokens, made.width), made.dtype)
    for index, row in enumerate(rows):
        start = first_image = 0
        for number, sample in enumerate(row, start=1):
            here = np.s_[index, start : start + len(sample)]
            batch["tokens"][here] = sample.tokens
            batch["segment"][here] = number
            batch["position"][here] = np.arange(len(sample))
            batch["image"][here] = np.where(sample.image < 0, -1, sample.image + first_image)
            batch["patch"][here] = sample.patch
            batch["text_weight"][here] = sample.text_weight
            batch["visual_weight"][here] = sample.visual_weight
            for offset, (picture, role) in enumerate(zip(sample.images, sample.roles, strict=True)):
                batch["images"][index, first_image + offset] = picture
                batch["role"][index, first_image + offset] = role
            for made in shape.features:
                there = np.s_[index, first_image : first_image + len(sample.images)]
                batch[f"{made.tower}_features"][there] = sample.features[made.tower]
            start += len(sample)
            first_image += len(sample.images)
    return batch


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
