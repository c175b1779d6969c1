"""Settings of the ``kl16`` tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from unihetero_jax.config.components import TOWERS, TowerConfig
from unihetero_jax.config.section_presets import completed
from unihetero_jax.towers.common.autoencoder.config import KL16_TINY, KLConfig, encoder_flops


@TOWERS.section("kl16")
@dataclass(frozen=True)
class KL16Config(TowerConfig, KLConfig):
    """MAR's KL-16 (arXiv 2406.11838) as a tower: its features are latents times ``latent_scale``.

    Attributes:
      preset: ``kl16``, the published sizes, or ``kl16-tiny``; empty: the sizes below.
      sample: whether training draws latents from their posterior instead of taking the mean.
    """

    decodes: ClassVar[bool] = True
    has_state_dict: ClassVar[bool] = True
    gives_latents: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "kl16": {},
        "kl16-tiny": {name: value for name, value in dataclasses.asdict(KL16_TINY).items() if name != "latent_scale"},
    }

    preset: str = ""
    sample: bool = False

    def completed(self, key: str) -> Self:
        """The section with the preset's sizes; the scale of a tower of one's own is measured after its training."""
        return completed(self, TowerConfig, self.presets, ("dtype", "latent_scale", "sample"), key)

    def tokens(self, image_size: int, key: str) -> int:
        """Visual tokens per image, which is resized to what the encoder works on."""
        del image_size, key
        return self.grid**2

    @property
    def features(self) -> int:
        """Channels of a latent."""
        return self.latent

    @property
    def stored_features(self) -> int:
        """Mean and log variance where latents are drawn from them."""
        return 2 * self.latent if self.sample else self.latent

    def flops(self, image_size: int) -> float:
        """FLOPs of the forward pass per image."""
        del image_size
        return encoder_flops(self, 2 * self.latent) + 2.0 * self.grid**2 * (2 * self.latent) ** 2
