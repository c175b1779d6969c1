"""Config of a run that trains the attribute classifier. No JAX here."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_collections

from unihetero_jax.errors import UsageError
from unihetero_jax.towers.common.attribute_classifier.config import AttributeClassifierConfig, SpoilConfig
from unihetero_jax.train.towers.base import TRAINED_TOWERS, TowerRunConfig


@TRAINED_TOWERS.section("attribute_classifier")
@dataclass(frozen=True)
class AttributeClassifierRunConfig(TowerRunConfig):
    """A classifier of the attributes of Smart Watch images, trained on images of which some are degraded.

    Attributes:
      tower: sizes of the classifier.
      spoil: how training images are degraded.
    """

    tower: AttributeClassifierConfig = field(default_factory=AttributeClassifierConfig)
    spoil: SpoilConfig = field(default_factory=SpoilConfig)

    def check(self, key: str) -> None:
        """Refuse patches that do not divide the image."""
        super().check(key)
        if self.spoil.smooth and self.tower.image_size % self.spoil.patch:
            raise UsageError(
                f"{key}.spoil.patch={self.spoil.patch}: does not divide {key}.tower.image_size="
                f"{self.tower.image_size}; expected a patch that does, or {key}.spoil.smooth=0"
            )

    @staticmethod
    def small(config: ml_collections.ConfigDict) -> None:
        """Set what the small tower on Smart Watch needs."""
        config.optimizer.learning_rate = 3e-3
        config.train.batch_size = 64
        config.train.steps = 500
        config.evaluate.images = 300
