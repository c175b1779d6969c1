"""Learner of the attribute classifier: degraded images, and the losses of its scores.

B rows (one image each), S pixels per side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.losses.base import mean
from unihetero_jax.parallel.module_definition import ModelDefinition, Params
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.towers.common.attribute_classifier.config import SpoilConfig
from unihetero_jax.towers.common.attribute_classifier.network import CHARGES, AttributeClassifier, Reading
from unihetero_jax.towers.common.autoencoder.images import to_signed
from unihetero_jax.train.learner import Batch, Scalars, Stream
from unihetero_jax.train.towers.attribute_classifier.config import AttributeClassifierRunConfig
from unihetero_jax.train.towers.attribute_classifier.stream import WatchStream
from unihetero_jax.train.towers.base import TRAINED_TOWERS
from unihetero_jax.train.towers.common import TowerLearner

# Weight of each loss; absolute errors of a color, from 0 to 1, are small beside cross-entropies.
LOSSES = {"time": 1.0, "second": 1.0, "content": 1.0, "battery": 1.0, "color": 10.0}

# Percent of charge: 1% is less than a pixel of the battery icon.
_CHARGE_SPREAD = 2.0


def attribute_losses(reading: Reading, batch: Batch) -> tuple[Scalars, Scalars]:
    """Sum each of ``LOSSES`` over B images, and count the right hours and corners.

    Args:
      reading: scores of the images.
      batch: true attributes, as ``stream.labels`` has them.

    Returns:
      The sums by loss; and ``hour_right`` and ``corners_right``.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    rows, minutes = reading.time.shape[0], reading.time.shape[-1]
    time = reading.time.reshape(rows, -1)
    charge = jnp.take_along_axis(reading.charge, batch["battery_corner"][:, None, None], axis=1)[:, 0]
    percent = jnp.arange(CHARGES, dtype=jnp.float32)
    near = jax.nn.softmax(-0.5 * jnp.square((percent - batch["battery"][:, None]) / _CHARGE_SPREAD))
    sums = {
        "time": jnp.sum(cross_entropy(time, batch["hour"] * minutes + batch["minute"])),
        "second": jnp.sum(cross_entropy(reading.second, batch["second"])),
        "content": jnp.sum(cross_entropy(reading.content, batch["content"])),
        "battery": jnp.sum(optax.softmax_cross_entropy(charge, near)),
        "color": jnp.sum(jnp.mean(jnp.abs(reading.color - batch["color"]), axis=-1)),
    }
    hours = jnp.argmax(time, axis=-1) // minutes == batch["hour"]
    corners = jnp.all(jnp.argmax(reading.content, axis=-1) == batch["content"], axis=-1)
    found = {"hour_right": hours, "corners_right": corners}
    return sums, {name: jnp.sum(right.astype(jnp.float32)) for name, right in found.items()}


@TRAINED_TOWERS.register("attribute_classifier")
@dataclass(frozen=True)
class AttributeClassifierLearner(TowerLearner):
    """Cross-entropies of time, second, corners and charge, and the color's absolute error; see ``attribute_losses``.

    Reports the share of right hours, and of images whose corners are all right.
    """

    config: AttributeClassifierRunConfig
    model: ModelDefinition[AttributeClassifier]

    @staticmethod
    def module(config: AttributeClassifierRunConfig, vocabulary: int, rngs: nnx.Rngs) -> AttributeClassifier:
        """Create the classifier."""
        del vocabulary
        return AttributeClassifier(config.tower, rngs=rngs)

    @property
    def coefficients(self) -> dict[str, float]:
        """Factors of the losses of ``attribute_losses``."""
        return LOSSES

    def totals(self, batch: Batch) -> Scalars:
        """Return the number of images, for each loss."""
        return dict.fromkeys(LOSSES, jnp.float32(batch["images"].shape[0]))

    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """Return the sums, and how many hours and corners are right."""
        images = to_signed(batch["images"][:, None], self.config.tower.image_size)
        return attribute_losses(self.model.bind(params)(degrade(images, key, self.config.spoil)), batch)

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """Return ``hour_right`` and ``corners_right`` as shares of the batch."""
        return {name: mean(found, totals["time"]) for name, found in monitors.items()}

    def open_stream(self, root: Path, tokenizer: Tokenizer, rows: list[int], state: DataState | None = None) -> Stream:
        """Open a stream of images with their attributes."""
        del tokenizer
        return WatchStream(self.config, root, rows, state)


def degrade(images_BSSC: Float[Array, "B S S 3"], key: jax.Array, config: SpoilConfig) -> Float[Array, "B S S 3"]:
    """Degrade images in [−1, 1]: blur some, smooth some, tint patches of some, add noise to some, each independently.

    Args:
      images_BSSC: the original images.
      key: for which images, and how much.
      config: the largest amounts.
    """
    rows, side = images_BSSC.shape[:2]
    which, blur, smooth, tint, noise = jax.random.split(key, 5)
    chosen = jax.random.bernoulli(which, config.share, (4, rows, 1, 1, 1)).astype(jnp.float32)

    width = config.blur * jax.random.uniform(blur, (rows, 1, 1)) * chosen[0, :, :, :, 0] + 1e-3
    apart = jnp.arange(side)[:, None] - jnp.arange(side)
    kernel = jax.nn.softmax(-0.5 * jnp.square(apart / width), axis=-1)
    images = jnp.einsum("bij,bjwc,bvw->bivc", kernel, images_BSSC, kernel)

    def patches(x: jax.Array) -> jax.Array:
        return jnp.repeat(jnp.repeat(x, config.patch, axis=1), config.patch, axis=2)[:, :side, :side]

    count = -(-side // config.patch)
    if config.smooth:
        means = images.reshape(rows, count, config.patch, count, config.patch, 3).mean(axis=(2, 4))
        share = config.smooth * jax.random.uniform(smooth, (rows, 1, 1, 1)) * chosen[1]
        images = images + share * (patches(means) - images)
    spread = 2 * config.tint / 255 * chosen[2]
    images = images + spread * patches(jax.random.normal(tint, (rows, count, count, 3)))
    images = images + 2 * config.noise / 255 * chosen[3] * jax.random.normal(noise, images.shape)
    return jnp.clip(images, -1.0, 1.0)
