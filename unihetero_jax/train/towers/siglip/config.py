"""Config of a run that trains a SigLIP image tower. No JAX here."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_collections

from unihetero_jax.config.constraints import NonNegativeFloat, PositiveFloat, PositiveInt
from unihetero_jax.errors import UsageError
from unihetero_jax.towers.siglip.config import PRESETS, SigLIPSizes
from unihetero_jax.train.towers.base import TRAINED_TOWERS, TowerRunConfig


@dataclass(frozen=True)
class TextTowerConfig:
    """The text side of a contrastive pair: a causal transformer over the start of the caption.

    Attributes:
      width: width of the hidden states.
      layers: layers of the text tower.
      caption_layers: further layers, on top, that predict the caption from the image, where captioning has a weight.
      tokens: largest number of a caption's tokens that are read.
      heads: attention heads.
      mlp_width: hidden width of the MLPs.
    """

    width: PositiveInt = 96
    layers: PositiveInt = 2
    caption_layers: PositiveInt = 2
    tokens: PositiveInt = 64
    heads: PositiveInt = 4
    mlp_width: PositiveInt = 256

    def check(self, key: str) -> None:
        """Refuse heads without an even share of the width."""
        if self.width % (2 * self.heads):
            raise UsageError(
                f"{key}.heads={self.heads}: a head is not an even share of {key}.width={self.width}; rotary positions "
                "need an even width"
            )


@dataclass(frozen=True)
class ContrastiveConfig:
    """The shared space of image and text embeddings, and the weight of captioning.

    Attributes:
      width: width of the shared space.
      scale: initial factor on the products of embeddings (arXiv 2303.15343, section 3.2).
      bias: initial bias of the products.
      captioning: weight of the cross-entropy of the caption's tokens given the image, beside the contrastive loss
        (CoCa, arXiv 2205.01917, equation 4); 0: no captioner.
    """

    width: PositiveInt = 128
    scale: PositiveFloat = 10.0
    bias: float = -10.0
    captioning: NonNegativeFloat = 0.0


@TRAINED_TOWERS.section("siglip")
@dataclass(frozen=True)
class SigLIPRunConfig(TowerRunConfig):
    """An image tower and a text tower with a sigmoid contrastive loss; the image tower is what is stored.

    Attributes:
      tower: sizes of the image tower.
      split_patches: in training, give the mean color of a patch and its detail separate kernels; they are stored as
        the one kernel that they add up to.
      text: the text tower.
      losses: the shared space and the losses.
    """

    tower: SigLIPSizes = field(default_factory=lambda: SigLIPSizes(**PRESETS["siglip-tiny"]))
    split_patches: bool = False
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    losses: ContrastiveConfig = field(default_factory=ContrastiveConfig)

    def check(self, key: str) -> None:
        """Refuse accumulation."""
        super().check(key)
        if self.train.accumulation != 1:
            raise UsageError(
                f"{key}.train.accumulation={self.train.accumulation}: a contrastive loss compares all pairs of a "
                f"batch; expected 1, and a smaller {key}.train.batch_size where memory is short"
            )

    @staticmethod
    def small(config: ml_collections.ConfigDict) -> None:
        """Set what the small tower on Smart Watch needs."""
        config.data.seq_len = 48
        # One kernel for mean color and detail learns the disc and not its hands.
        config.split_patches = True
        config.text.width = 128
        config.text.mlp_width = 384
        config.text.layers = 1
        # No caption has more.
        config.text.tokens = 32
        # With the published 10, a true pair would hardly reach even odds in so few steps: the scale moves slowly.
        config.losses.scale = 20.0
        config.losses.captioning = 3.0
        config.train.batch_size = 64
        config.train.steps = 1_000
        config.evaluate.images = 300
