"""Settings of the regression of pixel latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unihetero_jax.config.components import LOSSES, Part
from unihetero_jax.config.constraints import PositiveInt
from unihetero_jax.config.towers import latent_width, visual_places
from unihetero_jax.losses.common.latents import LatentLossConfig


@LOSSES.section("pixel")
@dataclass(frozen=True)
class PixelLossConfig(LatentLossConfig):
    """Squared error of an MLP that predicts each target slot's pixel latent.

    Attributes:
      width: width of the MLP's hidden layer.
    """

    width: PositiveInt = 512

    def work(self, config: Any, vocabulary: int, embeddings_trained: bool) -> list[Part]:
        """Count the head's FLOPs, at every visual token's place."""
        forward = 2.0 * self.width * (config.model.decoder.width + latent_width(config))
        return [Part("pixel head", visual_places(config) * forward, 2.0)]
