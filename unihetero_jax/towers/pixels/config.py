"""Settings of the ``pixels`` tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unihetero_jax.config.components import TOWERS, TowerConfig
from unihetero_jax.config.constraints import NonNegativeInt
from unihetero_jax.towers.patch.config import patch_count


@TOWERS.section("pixels")
@dataclass(frozen=True)
class PixelsConfig(TowerConfig):
    """Raw patches in [−1, 1], without parameters: what a loss on latents predicts without an autoencoder.

    Attributes:
      patch_size: pixels per side of a patch; divides the image. As ``model.pixel_tower``, 0 gives one patch for each
        target token.
    """

    cacheable: ClassVar[bool] = False
    decodes: ClassVar[bool] = True
    gives_latents: ClassVar[bool] = True

    patch_size: NonNegativeInt = 16

    def tokens(self, image_size: int, key: str) -> int:
        """Patches of the image."""
        return patch_count(image_size, self.patch_size, key)

    @property
    def features(self) -> int:
        """Values of a patch."""
        return self.patch_size**2 * 3

    def flops(self, image_size: int) -> float:
        """None."""
        del image_size
        return 0.0
