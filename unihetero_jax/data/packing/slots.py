"""Slots: a sample laid out in the slots of a row.

Shape letters: n slots of one sample.
"""

from __future__ import annotations

import enum
import functools
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from unihetero_jax.data.records.images import CENTER, MAX_PIXELS, Fit, decode_into
from unihetero_jax.data.records.invalid import InvalidRecord


class Role(enum.IntEnum):
    """Use of an image of a row, as stored in a packed batch."""

    ABSENT = 0
    INPUT = 1
    TARGET = 2
    BOTH = 3


PREDICTED = frozenset((Role.TARGET, Role.BOTH))


class Transform(NamedTuple):
    """How an image becomes square; the fields are arguments of `unihetero_jax.data.records.images.decode`."""

    fit: Fit = "stretch"
    crop: tuple[float, float] = CENTER
    share: float = 1.0
    flip: bool = False


STRETCHED = Transform()


@dataclass(slots=True)
class Slots:
    """A sample laid out in slots.

    Its images are encoded until its row is known: decoding is expensive.

    Attributes:
        tokens: Ids, one per slot [n].
        learned: First slot, and the slot after the last, of each text that is a target.
        visual: The same of each image, and its role.
        images: Encoded images; after `decode`, their pixels [H, W, 3] uint8.
        transform: How they become square.
        features: Precomputed features of the images by tower, [images, N, F].
        undecodable: Whether an image could not be decoded when these were computed.
    """

    tokens: array[int]
    learned: list[tuple[int, int]]
    visual: list[tuple[int, int, Role]]
    images: tuple[Any, ...]
    transform: Transform = STRETCHED
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    undecodable: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Role of each image."""
        return tuple([role for _, _, role in self.visual])

    def write(self, row: Mapping[str, np.ndarray], start: int, first_image: int) -> None:
        """Write the sample into the arrays [T] of a row.

        Args:
            row: Arrays by name; those of images contain −1, weights 0.
            start: First slot of the sample in the row.
            first_image: Number of its first image in the row.
        """
        row["tokens"][start : start + len(self.tokens)] = self.tokens
        weight = row["text_weight"]
        for first, last in self.learned:
            weight[start + first : start + last] = 1.0
        for number, (first, last, role) in enumerate(self.visual, first_image):
            here = slice(start + first, start + last)
            row["image"][here] = number
            row["patch"][here] = count_up(last - first)
            if role in PREDICTED:
                row["visual_weight"][here] = 1.0

    def decode(self, image_size: int, max_pixels: int = MAX_PIXELS) -> Slots:
        """Return the sample with its images decoded.

        Args:
            image_size: Side of an image in pixels.
            max_pixels: Most pixels of an image that is decoded.

        Raises:
            InvalidRecord: An image cannot be decoded, or could not be when its features were computed.
        """
        squares = tuple(np.empty((image_size, image_size, 3), np.uint8) for _ in self.images)
        self.decode_into(squares, max_pixels)
        return replace(self, images=squares)

    def decode_into(self, squares: Iterable[np.ndarray], max_pixels: int) -> None:
        """Decode the images into the first of these arrays, [H, W, 3] uint8 each; raises as ``decode``."""
        fit, crop, share, flip = self.transform
        for data, square in zip(self.images, squares, strict=False):
            decode_into(square, data, fit=fit, crop=crop, share=share, flip=flip, max_pixels=max_pixels)
        if self.undecodable:
            raise InvalidRecord("undecodable", "an image that could not be decoded when its features were computed")


def check_fits(slots: int, images: int, most_slots: int, most_images: int) -> None:
    """Raise ``InvalidRecord`` for a sample with more slots or images than a row has."""
    if slots > most_slots or images > most_images:
        raise InvalidRecord(
            "too_long",
            f"{slots} slots and {images} images do not fit a row of {most_slots} slots and {most_images} images",
        )


@functools.lru_cache(4096)
def count_up(count: int) -> np.ndarray:
    """Return 0, 1, … [count] int32; cached, so do not write to it."""
    return np.arange(count, dtype=np.int32)
