"""PackedBatch: rows of fixed shape, the contract between data and model.

It is a dict of NumPy arrays. B rows, T slots, K images per row, N visual tokens per image, F their width:

  tokens          [B, T] int32    text id; the image-pad id on a visual slot; the pad id (0) on padding
  segment         [B, T] int32    1, 2, … for the samples of a row; 0 is padding; attention never crosses segments
  position        [B, T] int32    restarts at 0 in each segment
  image, patch    [B, T] int32    on a visual slot, which of the row's images and which of its tokens; −1 on text
  text_weight     [B, T] float32  weight of the cross-entropy of tokens[t], predicted at t−1
  visual_weight   [B, T] float32  weight of the visual objectives of slot t, predicted at t−1
  images          [B, K, H, W, 3] uint8; absent where features replace every tower (``RowShape.pixels``)
  role            [B, K] int8     a ``Role``
  TOWER_features  [B, K, N, F]    precomputed features of a tower that is replaced by them, in their stored type
  skipped         [B, R] int32    records that the row's stream has skipped since the run began, by ``SKIP_REASONS``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unihetero_jax.data.packing.slots import Role, Slots, count_up

PackedBatch = dict[str, np.ndarray]
# Padding and type of the arrays with a value per slot.
SLOT_ARRAYS: dict[str, tuple[float, Any]] = {
    "tokens": (0, np.int32),
    "segment": (0, np.int32),
    "position": (0, np.int32),
    "image": (-1, np.int32),
    "patch": (-1, np.int32),
    "text_weight": (0.0, np.float32),
    "visual_weight": (0.0, np.float32),
}


@dataclass(frozen=True)
class FeatureShape:
    """Precomputed features of an image.

    Attributes:
        tower: Name of the tower, such as ``understanding_tower``.
        tokens: N, visual tokens per image.
        width: F, width of a token.
        dtype: Name of the NumPy type.
    """

    tower: str
    tokens: int
    width: int
    dtype: str


@dataclass(frozen=True)
class RowShape:
    """Shape of a row.

    Attributes:
        slots: T, slots per row.
        images: K, images per row.
        image_size: Side of an image in pixels.
        features: Features that a batch has instead of, or beside, the pixels.
        pixels: Whether a batch has ``images``. Without, only images that have no features are decoded; records are
            skipped for the same reasons, so that rows, their order and the data state are the same either way.
    """

    slots: int
    images: int
    image_size: int
    features: tuple[FeatureShape, ...] = ()
    pixels: bool = True


def empty_batch(size: int, shape: RowShape) -> PackedBatch:
    """Return the arrays of a packed batch of ``size`` rows (without ``skipped``), all of it padding."""
    batch: PackedBatch = {
        name: np.full((size, shape.slots), padding, dtype) for name, (padding, dtype) in SLOT_ARRAYS.items()
    }
    batch["role"] = np.full((size, shape.images), Role.ABSENT, np.int8)
    if shape.pixels:
        batch["images"] = np.zeros((size, shape.images, shape.image_size, shape.image_size, 3), np.uint8)
    for each in shape.features:
        batch[f"{each.tower}_features"] = np.zeros((size, shape.images, each.tokens, each.width), each.dtype)
    return batch


def batch_bytes(size: int, shape: RowShape) -> int:
    """Return the bytes of a packed batch of ``size`` rows."""
    return size * sum(array.nbytes for array in empty_batch(1, shape).values())


def pack(rows: Sequence[Sequence[Slots]], shape: RowShape) -> PackedBatch:
    """Lay out rows of decoded samples as a packed batch (without ``skipped``)."""
    batch = empty_batch(len(rows), shape)
    for index, row in enumerate(rows):
        fill(batch, index, row, shape)
    return batch


def fill(batch: PackedBatch, index: int, row: Sequence[Slots], shape: RowShape) -> None:
    """Write decoded samples into row ``index`` of a batch, which is empty or was written by this function before."""
    fill_slots(batch, index, row, shape)
    if shape.pixels:
        for place, image in enumerate([image for sample in row for image in sample.images]):
            batch["images"][index, place] = image


def fill_slots(batch: PackedBatch, index: int, row: Sequence[Slots], shape: RowShape) -> None:
    """Write samples as ``fill`` does, except for the pixels of their images."""
    arrays = {name: batch[name][index] for name in SLOT_ARRAYS}
    for name, (padding, _) in SLOT_ARRAYS.items():
        arrays[name].fill(padding)
    start = images = 0
    roles: list[Role] = []
    for number, sample in enumerate(row, 1):
        end = start + len(sample)
        sample.write(arrays, start, images)
        arrays["segment"][start:end] = number
        arrays["position"][start:end] = count_up(end - start)
        for each in shape.features:
            here = slice(images, images + len(sample.images))
            batch[f"{each.tower}_features"][index, here] = sample.features[each.tower]
        roles += sample.roles
        start, images = end, len(roles)
    # Images beyond those of the row's last content are black already; clearing them again takes as long as a sample.
    before = np.count_nonzero(batch["role"][index])
    if shape.pixels:
        batch["images"][index, images:before] = 0
    for each in shape.features:
        batch[f"{each.tower}_features"][index, images:before] = 0
    batch["role"][index, :images] = roles
    batch["role"][index, images:] = Role.ABSENT
