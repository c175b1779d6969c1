"""Settings of the diffusion loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unihetero_jax.config.components import LOSSES, Part
from unihetero_jax.config.towers import latent_width, visual_places, visual_tokens
from unihetero_jax.errors import UsageError
from unihetero_jax.losses.common.latents import LatentLossConfig
from unihetero_jax.model.diffusion.config import DiffusionConfig


@LOSSES.section("diffusion")
@dataclass(frozen=True)
class DiffusionLossConfig(LatentLossConfig, DiffusionConfig):
    """Diffusion or flow on each target slot's pixel latent, conditioned on the hidden state before it."""

    @property
    def null_condition(self) -> bool:
        """Whether the network has a null condition."""
        return self.condition_dropout > 0

    def check_with(self, config: Any, key: str) -> None:
        """Refuse a network that generates whole images where latents are fed back one by one."""
        super().check_with(config, key)
        if config.model.generation == "latents" and self.network == "dit":
            raise UsageError(
                f"{key}.network='dit' with config.model.generation='latents': a DiT generates all tokens of an image "
                "at once, and latents are fed back one by one; set network='mlp'"
            )

    def work(self, config: Any, vocabulary: int, embeddings_trained: bool) -> list[Part]:
        """Count the head's FLOPs, at every visual token's place; every noise sample runs the network."""
        condition, channels, tokens = config.model.decoder.width, latent_width(config), visual_tokens(config)[1]
        width = self.width
        outputs = 2 * channels if self.objective == "ddpm" else channels
        around = 256 * width + width**2 + condition * width + channels * width + 2 * width**2 + width * outputs
        if self.network == "mlp":
            block = 5.0 * width**2
        else:
            block = (10.0 + 2 * self.mlp_ratio) * width**2 + 2.0 * tokens * width
        return [Part("pixel head", visual_places(config) * 2.0 * self.draws * (around + self.depth * block), 2.0)]
