"""Learner of the SigLIP image tower.

B rows (one image each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.losses.base import mean
from unihetero_jax.parallel.module_definition import ModelDefinition, Params
from unihetero_jax.train.learner import Batch, Scalars
from unihetero_jax.train.towers.base import TRAINED_TOWERS
from unihetero_jax.train.towers.common import TowerLearner, image_weight
from unihetero_jax.train.towers.siglip.config import SigLIPRunConfig
from unihetero_jax.train.towers.siglip.pair import ImageTextPair, sigmoid_sums


@TRAINED_TOWERS.register("siglip")
@dataclass(frozen=True)
class SigLIPLearner(TowerLearner):
    """Sigmoid contrastive loss between image and caption, and captioning; reports retrieval within the batch."""

    config: SigLIPRunConfig
    model: ModelDefinition[ImageTextPair]

    @staticmethod
    def module(config: SigLIPRunConfig, vocabulary: int, rngs: nnx.Rngs) -> ImageTextPair:
        """Create the image tower and the text tower."""
        return ImageTextPair(config, vocabulary, rngs=rngs)

    @property
    def coefficients(self) -> dict[str, float]:
        """Factors of the losses; captioning only where it has a weight."""
        captioning = self.config.losses.captioning
        return {"contrastive": 1.0} | ({"captioning": captioning} if captioning else {})

    def totals(self, batch: Batch) -> Scalars:
        """Return the number of images with a caption, and of these captions' tokens."""
        weight = pair_weight(batch)
        # The text tower reads no more of a caption.
        tokens = jnp.minimum(jnp.sum(batch["text_weight"] > 0, axis=1), self.config.text.tokens)
        return {"contrastive": jnp.sum(weight), "captioning": jnp.sum(tokens * weight)}

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """Return the sums, and how many pairs were retrieved."""
        model, weight = self.model.bind(params), pair_weight(batch)
        pairs = model(batch["images"][:, 0], batch["tokens"], batch["text_weight"] > 0, mesh)
        loss, found = sigmoid_sums(pairs, weight, mesh)
        sums = {"contrastive": loss, "captioning": jnp.sum(pairs.captions * weight)}
        return {name: sums[name] for name in self.losses}, {**found, "scale": pairs.scale, "bias": pairs.bias}

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """Return top-1 ``image_to_text`` and ``text_to_image`` within the batch, ``scale`` and ``bias``."""
        found = {name: mean(monitors[name], totals["contrastive"]) for name in ("image_to_text", "text_to_image")}
        return {**found, "scale": monitors["scale"], "bias": monitors["bias"]}


def pair_weight(batch: Batch) -> jax.Array:
    """Return 1 for a row with an image, a caption and no other sample, whose text would mix with it; else 0, [B]."""
    alone = jnp.max(batch["segment"], axis=1) == 1
    return image_weight(batch) * (alone & jnp.any(batch["text_weight"] > 0, axis=1))
