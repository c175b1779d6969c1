"""Settings that the losses on pixel latents share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unihetero_jax.config.components import LossConfig
from unihetero_jax.config.constraints import Fraction
from unihetero_jax.config.towers import check_pixel_tower
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class LatentLossConfig(LossConfig):
    """A head that predicts the pixel latent of each target slot from the hidden state before it.

    Attributes:
      gradient_to_decoder: factor on the gradient that flows back into the decoder; 0 detaches the head.
    """

    generates: ClassVar[str] = "latents"

    gradient_to_decoder: Fraction = 0.0

    @property
    def reaches_decoder(self) -> bool:
        """Whether the decoder learns from the loss."""
        return self.gradient_to_decoder > 0

    def check_with(self, config: Any, key: str) -> None:
        """Refuse codes, which have a decoder of their own, and a pixel tower that does not fit."""
        if config.model.generation == "codes":
            raise UsageError(
                f"{key}.weight with config.model.generation='codes': codes become images by their own decoder; set "
                f"{key.removeprefix('config.')}.weight=0"
            )
        if config.model.generation != self.generates:
            check_pixel_tower(config)
