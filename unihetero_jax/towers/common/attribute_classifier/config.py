"""Sizes of the attribute classifier, and how its training images are distorted. No JAX: the config imports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from unihetero_jax.config.constraints import Fraction, NonNegativeFloat, PositiveInt
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class AttributeClassifierConfig:
    """Predicts the attributes of a watch from its image; ``towers.common.attribute_classifier.network`` describes how.

    Attributes:
      image_size: pixels per side that images are resized to.
      angles: samples around the dial, a multiple of 60.
      radii: samples from the dial's center to its rim.
      channels: width of the network along the dial.
      layers: layers of the network along the dial.
      reach: neighbors on either side that a layer along the dial is given.
      hidden: width of the network of a corner.
      dtype: type of activations; parameters and scores are float32 either way.
    """

    family: ClassVar[str] = "attribute_classifier"

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
            raise UsageError(
                f"AttributeClassifierConfig.angles={self.angles}: expected a multiple of 60, the marks of a dial"
            )


@dataclass(frozen=True)
class SpoilConfig:
    """How images are distorted in training, so that generated ones, which are less sharp, are classified as well.

    Attributes:
      share: share of the images that each kind of distortion applies to.
      blur: greatest standard deviation of a Gaussian blur, in pixels.
      smooth: greatest weight of a patch's mean in its pixels, as detail is lost in codes and latents.
      patch: pixels per side of a patch.
      tint: standard deviation of a patch's error in color, of 255.
      noise: standard deviation of a pixel's error, of 255.
    """

    share: Fraction = 0.5
    blur: NonNegativeFloat = 1.0
    smooth: Fraction = 0.7
    patch: PositiveInt = 8
    tint: NonNegativeFloat = 6.0
    noise: NonNegativeFloat = 8.0
