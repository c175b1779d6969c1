"""The definition of a loss, a sum and a weight; and the one place where losses are added.

A mean is taken once, over the global batch and all accumulation steps: the weights are known from the batch before the
first forward pass (``total_weights``), so that each pass adds its share of the sums (``loss_sums``) and never a mean.

B rows, T slots, M visual tokens per row, D width.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.config.components import LOSSES, LossConfig
from unihetero_jax.model.unified import (
    Encoded,
    HeadSizes,
    UnifiedModel,
    Visual,
    VisualSlots,
    at_slots,
    visual_slots,
)
from unihetero_jax.model.unified import purpose_key as purpose_key
from unihetero_jax.model.vision import Batch as Batch
from unihetero_jax.parallel.mesh import constrain

Scalars = dict[str, jax.Array]
Config = TypeVar("Config", bound=LossConfig)


@dataclass(frozen=True)
class LossInputs:
    """What a loss may use; what it does not use is not computed.

    Attributes:
      model: the model.
      batch: a packed batch.
      visual: the towers' outputs for its images.
      hidden: hidden states [B, T, D], teacher-forced; the one at t − 1 predicts slot t.
      teacher: target features and embeddings by the moving average of tower and adapter, where a loss has one.
      key: for noise and sampled latents; None in an evaluation, which gives the same numbers twice.
      mesh: where activations are constrained to.
    """

    model: UnifiedModel
    batch: Batch
    visual: Visual
    hidden: jax.Array
    teacher: Encoded | None
    key: jax.Array | None
    mesh: Mesh | None

    @functools.cached_property
    def slots(self) -> VisualSlots:
        """For each visual token of a row, [B, M]: the slot that predicts it, and its weight."""
        return visual_slots(self.batch, self.model.target_tokens)

    @functools.cached_property
    def predictors(self) -> jax.Array:
        """[B, M, D] hidden states that predict the target tokens."""
        return constrain(at_slots(self.hidden, self.slots.predictor), self.mesh, "batch", None, None)


@dataclass(frozen=True)
class Loss(ABC, Generic[Config]):
    """A loss of the unified model.

    Attributes:
      config: its section.
      name: its name in ``config.losses``, under which it is reported.
    """

    config: Config
    name: str

    @property
    def head_name(self) -> str:
        """Attribute of the model that holds the head, and so the first part of its parameters' paths."""
        return f"{self.name}_head"

    def make_head(self, sizes: HeadSizes, rngs: nnx.Rngs) -> nnx.Module | None:
        """Build the module that predicts from hidden states; None without one.

        Args:
          sizes: widths of what it maps from and to.
          rngs: for initialization.
        """
        del sizes, rngs
        return None

    def total_weight(self, batch: Batch) -> jax.Array:
        """Return Σ weight over a batch; by default that of the target tokens."""
        return jnp.sum(batch["visual_weight"])

    def coefficient(self, step: jax.Array) -> jax.Array:
        """Return the factor of the loss at a step."""
        del step
        return jnp.float32(self.config.weight)

    @abstractmethod
    def sum(self, model: UnifiedModel, inputs: LossInputs) -> jax.Array | tuple[jax.Array, Scalars]:
        """Return Σ weight · loss over some rows of a batch, and sums for ``metrics`` that add up over rows.

        Args:
          model: the model, its head at ``head_name``.
          inputs: batch, features and hidden states.
        """

    def metrics(self, monitors: Scalars) -> Scalars:
        """Return scalars to report besides the loss, from the monitors of the whole batch."""
        del monitors
        return {}


def make_losses(sections: Mapping[str, LossConfig]) -> tuple[Loss[Any], ...]:
    """Build the losses of a config that have a weight, in its order."""
    return tuple(
        LOSSES.find(section.kind, f"config.losses.{name}.kind")(section, name)
        for name, section in sections.items()
        if section.weight
    )


def total_weights(losses: tuple[Loss[Any], ...], batch: Batch) -> Scalars:
    """Return Σ weight of each loss over a batch."""
    return {loss.name: loss.total_weight(batch) for loss in losses}


def combine(losses: tuple[Loss[Any], ...], step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
    """Return Σ coefficient · sum / weight: the loss (or one accumulation step's share of it)."""
    shares = [loss.coefficient(step) * mean(sums[loss.name], totals[loss.name]) for loss in losses]
    return sum(shares[1:], shares[0])


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Return ``total / weight``, and 0 where there is no weight (such as a batch without images)."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def loss_sums(
    losses: tuple[Loss[Any], ...],
    model: UnifiedModel,
    batch: Batch,
    *,
    teacher: Encoded | None = None,
    key: jax.Array | None = None,
    dropout: bool = False,
    mesh: Mesh | None = None,
) -> tuple[Scalars, dict[str, Scalars]]:
    """Return Σ weight · loss of each loss over a batch, teacher-forced, and the monitors of those that have some.

    Args:
      losses: the config's losses.
      model: the model.
      batch: a packed batch.
      teacher: the target side by the moving average of tower and adapter, for a loss that has one.
      key: for dropout, sampled latents, noise on target images and the noise of diffusion. Without one, latents are
        means, nothing is dropped, targets are as they are, and the noise of diffusion is that of a fixed key: an
        evaluation gives the same numbers twice.
      dropout: whether the decoder's dropout is on.
      mesh: where activations are constrained to.
    """
    visual = model.encode(batch, None if key is None else purpose_key(key, "latents"), mesh)
    noise_key = None if key is None else purpose_key(key, "target noise")
    hidden_BTD = model.hidden(batch, visual, key if dropout else None, mesh, noise_key)
    inputs = LossInputs(model, batch, visual, hidden_BTD, teacher, key, mesh)
    sums: Scalars = {}
    monitors: dict[str, Scalars] = {}
    for loss in losses:
        found = loss.sum(model, inputs)
        if isinstance(found, tuple):
            found, monitors[loss.name] = found
        sums[loss.name] = found
    return sums, monitors


def metrics(losses: tuple[Loss[Any], ...], monitors: Mapping[str, Scalars]) -> Scalars:
    """Return what the losses report besides themselves."""
    found: Scalars = {}
    for loss in losses:
        if loss.name in monitors:
            found |= loss.metrics(monitors[loss.name])
    return found
