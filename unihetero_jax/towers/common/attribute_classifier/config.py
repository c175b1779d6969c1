"""Sizes of the reader of watches, and how its training images are spoilt. No JAX here: the config tree imports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from unihetero_jax.config.constraints import Fraction, NonNegativeFloat, PositiveInt
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class ReaderConfig:
    """What reads the attributes of a watch off its picture; ``towers.common.attribute_classifier.network`` says how.

    ``image_size``: pixels a side that pictures are resized to. ``angles`` and ``radii``: samples round the dial and
    from its centre to its rim. ``channels``, ``layers`` and ``reach``: of the network along the dial, whose layers see
    ``reach`` neighbours on either side. ``hidden``: width of the network that reads a corner. ``dtype``: activations;
    parameters and scores are float32 either way.
    """

    family: ClassVar[str] = "reader"

    image_size: PositiveInt = 64
    angles: int = 120
    radii: PositiveInt = 24
    channels: PositiveInt = 64
    layers: PositiveInt = 3
    reach: PositiveInt = 2
    hidden: PositiveInt = 192
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.angles < 60 or self.angles % 60:
            raise UsageError(f"ReaderConfig.angles={self.angles}: expected a multiple of 60, the marks of a dial")


@dataclass(frozen=True)
class SpoilConfig:
    """How pictures are spoilt in training, so that drawn ones, which are never as sharp, are read as well.

    ``share``: of the images, each kind by itself. ``blur``: greatest standard deviation of a Gaussian blur, in pixels.
    ``smooth``: greatest share of a patch's pixels that gives way to the patch's mean, in patches of ``patch`` pixels,
    as detail is lost in codes and latents. ``tint``: standard deviation of a patch's error in colour, and ``noise``
    that of a pixel's, of 255.
    """

    share: Fraction = 0.5
    blur: NonNegativeFloat = 1.0
    smooth: Fraction = 0.7
    patch: PositiveInt = 8
    tint: NonNegativeFloat = 6.0
    noise: NonNegativeFloat = 8.0
