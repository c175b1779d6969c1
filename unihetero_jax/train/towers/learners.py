"""Towers under training: what each kind learns from a packed batch whose rows hold one image.

B rows (one image each), H and W pixels, N tokens, E latent width, V codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from unihetero_jax.losses.base import mean
from unihetero_jax.parallel.definition import ModelDefinition, Params, define_module
from unihetero_jax.parallel.mesh import check_rows
from unihetero_jax.towers.common.attribute_classifier.network import WatchReader
from unihetero_jax.towers.common.autoencoder import losses as losses
from unihetero_jax.towers.common.autoencoder.images import to_signed
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.towers.vq16.network import VQ16
from unihetero_jax.train.learner import Batch, Learner, Scalars
from unihetero_jax.train.state import make_optimizer
from unihetero_jax.train.towers.attribute_classifier import LOSSES, reading_losses, spoil
from unihetero_jax.train.towers.config import (
    KL16RunConfig,
    ReaderRunConfig,
    SigLIPRunConfig,
    TowerRunConfig,
    VQ16RunConfig,
)
from unihetero_jax.train.towers.contrastive import ImageTextPair, sigmoid_sums


@dataclass(frozen=True)
class TowerLearner(Learner):
    """What all towers have in common: every image has weight 1, and all parameters are trained alike."""

    config: TowerRunConfig
    model: ModelDefinition

    def totals(self, batch: Batch) -> Scalars:
        """How many images there are, for each loss."""
        return dict.fromkeys(self.losses, jnp.sum(image_weight(batch)))

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW."""
        return make_optimizer(self.config.optimizer, self.config.train.steps)

    def check(self, mesh: Mesh) -> None:
        """Refuses a mesh that the batch cannot be split over."""
        check_rows(mesh, self.config.train)


@dataclass(frozen=True)
class VQLearner(TowerLearner):
    """Reconstruction, codebook and commitment; reports how the codebook is used within a batch."""

    config: VQ16RunConfig
    model: ModelDefinition[VQ16]

    @property
    def losses(self) -> tuple[str, ...]:
        """As ``vq_loss_sums`` names them."""
        return tuple(losses.vq_coefficients(self.config.losses))

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """The sums, and how often each code was chosen, [V]."""
        model, weight = self.model.bind(params), image_weight(batch)
        images = to_signed(batch["images"], model.config.image_size)
        share = self.config.losses.continuous
        continuous = jax.random.bernoulli(key, share, weight.shape) if share else None
        sums, _, indices = losses.vq_loss_sums(model, images, weight, self.losses, continuous)
        return sums, losses.code_counts(indices, weight, model.config.codes)

    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """Σ coefficient · mean."""
        return losses.combine(losses.vq_coefficients(self.config.losses), sums, totals["l1"])

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """``code_perplexity`` and ``codes_used`` (a share) of the batch."""
        use = losses.codebook_use(monitors)
        return {"code_perplexity": use["perplexity"], "codes_used": use["used"]}

    @property
    def precise(self) -> bool:
        """Whether the tower computes in float32."""
        return self.config.tower.dtype == "float32"


@dataclass(frozen=True)
class KLLearner(TowerLearner):
    """Reconstruction and divergence; reports the standard deviation of the posteriors' means."""

    config: KL16RunConfig
    model: ModelDefinition[KL16]

    @property
    def losses(self) -> tuple[str, ...]:
        """As ``kl_loss_sums`` names them."""
        return tuple(losses.kl_coefficients(self.config.losses))

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """The sums; nothing is monitored."""
        model, weight = self.model.bind(params), image_weight(batch)
        images = to_signed(batch["images"], model.config.image_size)
        sums, _ = losses.kl_loss_sums(model, images, weight, key, self.losses)
        return sums, {}

    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """Σ coefficient · mean."""
        return losses.combine(losses.kl_coefficients(self.config.losses), sums, totals["l1"])

    @property
    def precise(self) -> bool:
        """Whether the tower computes in float32."""
        return self.config.tower.dtype == "float32"


@dataclass(frozen=True)
class SigLIPLearner(TowerLearner):
    """Sigmoid contrastive between image and caption, and captioning; reports retrieval within the batch."""

    config: SigLIPRunConfig
    model: ModelDefinition[ImageTextPair]

    @property
    def losses(self) -> tuple[str, ...]:
        """Captioning only where it has a weight."""
        return ("contrastive", "captioning") if self.config.losses.captioning else ("contrastive",)

    def totals(self, batch: Batch) -> Scalars:
        """How many images have a caption, and how many tokens these captions have."""
        weight = pair_weight(batch)
        # The text tower reads no more of a caption.
        tokens = jnp.minimum(jnp.sum(batch["text_weight"] > 0, axis=1), self.config.text.tokens)
        return {"contrastive": jnp.sum(weight), "captioning": jnp.sum(tokens * weight)}

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """The sums, and how many pairs were found again."""
        model, weight = self.model.bind(params), pair_weight(batch)
        pairs = model(batch["images"][:, 0], batch["tokens"], batch["text_weight"] > 0, mesh)
        loss, found = sigmoid_sums(pairs, weight, mesh)
        sums = {"contrastive": loss, "captioning": jnp.sum(pairs.captions * weight)}
        return {name: sums[name] for name in self.losses}, {**found, "scale": pairs.scale, "bias": pairs.bias}

    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """Σ coefficient · mean; of captioning over all tokens of the batch."""
        loss = mean(sums["contrastive"], totals["contrastive"])
        if "captioning" in self.losses:
            loss += self.config.losses.captioning * mean(sums["captioning"], totals["captioning"])
        return loss

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """``image_to_text`` and ``text_to_image``: top-1 among the batch; ``scale`` and ``bias`` of the logits."""
        found = {name: mean(monitors[name], totals["contrastive"]) for name in ("image_to_text", "text_to_image")}
        return {**found, "scale": monitors["scale"], "bias": monitors["bias"]}

    @property
    def precise(self) -> bool:
        """Whether the tower computes in float32."""
        return self.config.tower.dtype == "float32"


@dataclass(frozen=True)
class ReaderLearner(TowerLearner):
    """Cross-entropies of time, second, corners and charge, and the colour's absolute error; see ``reading_losses``.

    Reports the share of hours that are right, and of pictures whose corners are.
    """

    config: ReaderRunConfig
    model: ModelDefinition[WatchReader]

    @property
    def losses(self) -> tuple[str, ...]:
        """As ``reading_losses`` names them."""
        return tuple(LOSSES)

    def totals(self, batch: Batch) -> Scalars:
        """How many images there are, for each loss."""
        return dict.fromkeys(LOSSES, jnp.float32(batch["images"].shape[0]))

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """The sums, and how many hours and corners are right."""
        images = to_signed(batch["images"][:, None], self.config.tower.image_size)
        return reading_losses(self.model.bind(params)(spoil(images, key, self.config.spoil)), batch)

    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """Σ weight · mean."""
        return sum((weight * mean(sums[name], totals[name]) for name, weight in LOSSES.items()), jnp.float32(0))

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """``hour_right`` and ``corners_right``: shares of the batch."""
        return {name: mean(found, totals["time"]) for name, found in monitors.items()}

    @property
    def precise(self) -> bool:
        """Whether the reader computes in float32."""
        return self.config.tower.dtype == "float32"


def make_learner(config: TowerRunConfig, vocabulary: int) -> TowerLearner:
    """What trains a config's tower; ``vocabulary`` is that of the captions.

    Raises:
      UsageError: a tower that cannot be built.
    """
    if isinstance(config, VQ16RunConfig):
        return VQLearner(config, define_module(lambda rngs: VQ16(config.tower, rngs=rngs)))
    if isinstance(config, KL16RunConfig):
        return KLLearner(config, define_module(lambda rngs: KL16(config.tower, rngs=rngs)))
    if isinstance(config, ReaderRunConfig):
        return ReaderLearner(config, define_module(lambda rngs: WatchReader(config.tower, rngs=rngs)))
    assert isinstance(config, SigLIPRunConfig)
    return SigLIPLearner(config, define_module(lambda rngs: ImageTextPair(config, vocabulary, rngs=rngs)))


def image_weight(batch: Batch) -> jax.Array:
    """[B]: 1 for a row with an image, 0 for one without."""
    return (batch["role"][:, 0] > 0).astype(jnp.float32)


def pair_weight(batch: Batch) -> jax.Array:
    """[B]: 1 for a row with an image and a caption, and no other sample beside them, whose text would mix with it."""
    alone = jnp.max(batch["segment"], axis=1) == 1
    return image_weight(batch) * (alone & jnp.any(batch["text_weight"] > 0, axis=1))
