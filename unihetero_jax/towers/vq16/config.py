"""Settings of the ``vq16`` tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from unihetero_jax.config.components import TOWERS, TowerConfig
from unihetero_jax.config.section_presets import completed
from unihetero_jax.towers.common.autoencoder.config import VQ16_TINY, VQConfig, encoder_flops


@TOWERS.section("vq16")
@dataclass(frozen=True)
class VQ16Config(TowerConfig, VQConfig):
    """LlamaGen's VQ-16 (arXiv 2406.06525) as a tower: its features are the quantized latents.

    Attributes:
      preset: ``vq16``, the published sizes, or ``vq16-tiny``; empty: the sizes below.
    """

    decodes: ClassVar[bool] = True
    has_state_dict: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"vq16": {}, "vq16-tiny": dataclasses.asdict(VQ16_TINY)}

    preset: str = ""

    def completed(self, key: str) -> Self:
        """The section with the preset's sizes."""
        return completed(self, TowerConfig, self.presets, ("dtype",), key)

    def tokens(self, image_size: int, key: str) -> int:
        """Visual tokens per image, which is resized to what the encoder works on."""
        del image_size, key
        return self.grid**2

    @property
    def features(self) -> int:
        """Width of a code."""
        return self.code_width

    @property
    def stored_features(self) -> int:
        """A code per token."""
        return 1

    @property
    def stored_as_integers(self) -> bool:
        """Codes are."""
        return True

    @property
    def codebook_size(self) -> int:
        """Entries of the codebook."""
        return self.codes

    def flops(self, image_size: int) -> float:
        """FLOPs of the forward pass per image."""
        del image_size
        nearest = 2.0 * self.grid**2 * self.code_width * self.codes
        return encoder_flops(self, self.hidden) + 2.0 * self.grid**2 * self.hidden * self.code_width + nearest
