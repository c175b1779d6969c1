"""Settings of the ``patch`` tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unihetero_jax.config.components import TOWERS, TowerConfig
from unihetero_jax.config.constraints import Fraction, PositiveFloat, PositiveInt
from unihetero_jax.errors import UsageError


@TOWERS.section("patch")
@dataclass(frozen=True)
class PatchConfig(TowerConfig):
    """A linear map of raw patches, trained with the model.

    Attributes:
      patch_size: pixels per side of a patch; divides the image.
      width: width of a feature.
      pixel_mean: mean that is subtracted from pixels in [0, 1].
      pixel_std: standard deviation that they are then divided by.
      detail_gain: factor on a patch without its mean color; the larger a part, the sooner it is learned.
      color_gain: factor on a patch's mean color.
    """

    trained_by_default: ClassVar[bool] = True
    cacheable: ClassVar[bool] = False
    # Nothing is trained in front of it: of its product only the weights' gradient is needed.
    backward: ClassVar[float] = 1.0

    patch_size: PositiveInt = 16
    width: PositiveInt = 192
    pixel_mean: Fraction = 0.5
    pixel_std: PositiveFloat = 0.5
    detail_gain: PositiveFloat = 4.0
    color_gain: PositiveFloat = 4.0

    def tokens(self, image_size: int, key: str) -> int:
        """Patches of the image."""
        return patch_count(image_size, self.patch_size, key)

    @property
    def features(self) -> int:
        """Width of a feature."""
        return self.width

    def flops(self, image_size: int) -> float:
        """FLOPs of the forward pass per image."""
        return 2.0 * (image_size // self.patch_size) ** 2 * self.patch_size**2 * 3 * self.width


def patch_count(image_size: int, side: int, key: str) -> int:
    """Patches of a square image.

    Args:
      image_size: pixels per side of the image.
      side: pixels per side of a patch.
      key: where the tower's section is.

    Raises:
      UsageError: the patch size does not divide the image size.
    """
    if image_size % side:
        raise UsageError(f"{key}.patch_size={side} does not divide config.data.image_size={image_size}")
    return (image_size // side) ** 2
