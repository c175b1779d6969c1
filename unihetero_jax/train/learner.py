"""The interface between the training loop and what it trains: a model, its losses and its parameters.

Loop, step, state and checkpoints know nothing else of a model; another model or another set of losses is another
learner, not another trainer.
"""

from __future__ import annotations

import pathlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from unihetero_jax.config import ParameterGroupConfig, RunConfig
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.model.flops import Part
from unihetero_jax.parallel.mesh import constrain
from unihetero_jax.parallel.module_definition import ModelDefinition, Params
from unihetero_jax.parallel.parameter_paths import Path, join
from unihetero_jax.train.optimizers.base import make_optimizer

Batch = Mapping[str, jax.Array]
Scalars = dict[str, jax.Array]


class Inputs(NamedTuple):
    """What the losses of a step are a function of; a pytree.

    Attributes:
      trained: parameters that are differentiated.
      frozen: the other parameters.
      ema: moving average of some of the trained parameters.
      batch: the whole batch.
      totals: Σ weight of each loss over the batch.
      step: counted from 0.
      key: random key of the step.
    """

    trained: Params
    frozen: Params
    ema: Params
    batch: Batch
    totals: Scalars
    step: jax.Array
    key: jax.Array

    def loss_sums(
        self, learner: Learner, trained: Params, rows: Batch, number: jax.Array | int, mesh: Mesh
    ) -> tuple[Scalars, Any]:
        """Return the learner's sums and monitors of a part of the batch, with other trained parameters."""
        key = jax.random.fold_in(self.key, number)
        return learner.loss_sums(join(self.frozen, trained), self.ema, rows, key, mesh)


class Stream(Protocol):
    """Batches of some rows of the global batch, each with the data state after it."""

    def __next__(self) -> tuple[PackedBatch, DataState]: ...

    def close(self) -> None:
        """Stop whatever makes batches ahead of time."""


OpenStream = Callable[[list[int], DataState | None], Stream]


class Learner(ABC):
    """A model under training. The methods that compute are pure, and run inside the compiled step.

    A batch is processed in ``train.accumulation`` parts. The results of ``loss_sums`` are added up over them, so they
    are sums, never means; the weights to divide by are those of the whole batch, known before the first forward pass.

    Attributes:
      config: the run's configuration.
      model: its definition.
    """

    config: RunConfig
    model: ModelDefinition

    @property
    @abstractmethod
    def losses(self) -> tuple[str, ...]:
        """Names of the losses, in the order they are reported; training stops when one is not finite."""

    @abstractmethod
    def totals(self, batch: Batch) -> Scalars:
        """Return Σ weight of each loss over a whole batch."""

    @abstractmethod
    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """Compute Σ weight · loss of each loss over a part of a batch, and monitors.

        Args:
          params: all parameters, trained and frozen.
          ema: the moving average of ``averaged``.
          batch: rows of a packed batch.
          key: for everything random here.
          mesh: that activations are sharded over.

        Returns:
          The sums; and monitors, any tree of arrays that can be added up over parts of a batch, for ``metrics``.
        """

    @abstractmethod
    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """Return the loss of a step, or what some of its rows add to it."""

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """Return further metrics, from the monitors and sums of the whole batch: scalars by name."""
        del monitors, sums, totals
        return {}

    def work(self) -> Sequence[Part]:
        """Count the FLOPs of a step over the global batch, by parts of the model; empty: not counted, and no MFU."""
        return ()

    @property
    def precise(self) -> bool:
        """Whether matrix products are float32 throughout, also on chips whose default precision is lower."""
        return False

    def group(self, path: Path) -> ParameterGroupConfig:
        """Return how the parameter at a path is trained."""
        del path
        return ParameterGroupConfig()

    def optimizer(self) -> optax.GradientTransformation:
        """Return the optimizer of the trained parameters."""
        return make_optimizer(self.config.optimizer, self.config.train.steps, self.group)

    def initial_params(self) -> Params:
        """Initialize the parameters, in the types that training stores; pure in the config's seed."""
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), 0)
        return self.model.init(key)

    def split(self, params: Params) -> tuple[Params, Params]:
        """Split the parameters, or a tree of their structure, into (trained, frozen)."""
        return params, {}

    def averaged(self, trained: Params) -> Params:
        """Return the part of the trained parameters that has a moving average; empty: none."""
        del trained
        return {}

    def layers(self, trained: Params) -> Params:
        """Return the part of the trained parameters whose first axis is layers; empty: none."""
        del trained
        return {}

    @property
    def ema_decay(self) -> float:
        """Decay of the moving average per step."""
        return 0.0

    @abstractmethod
    def check(self, mesh: Mesh) -> None:
        """Refuse a mesh that the model or the batch cannot be split over.

        Raises:
          UsageError: naming the sizes that do not divide.
        """

    def start(self, params: Params, mesh: Mesh) -> Params:
        """Replace some of the initial parameters by the weights that a new run starts from."""
        del mesh
        return params

    @property
    def partial(self) -> bool:
        """Whether checkpoints store only the trained parameters, and identify the rest."""
        return False

    def base(self, params: Params) -> dict[str, str] | None:
        """Identify the parameters that a partial checkpoint does not store."""
        del params
        return None

    def complete(self, stored: Params, base: Mapping[str, str], path: pathlib.Path, mesh: Mesh) -> Params:
        """Complete the parameters of a partial checkpoint.

        Args:
          stored: parameters in the checkpoint.
          base: identity of the others.
          path: of the checkpoint.
          mesh: the run's device mesh.

        Raises:
          UsageError: the parameters rebuilt here are not those that the checkpoint was trained with.
        """
        del base, path, mesh
        return stored


def sum_over_parts(function: Callable[[Batch, Any], Any], batch: Batch, parts: int, mesh: Mesh) -> Any:
    """Add up what a function returns for each part of a batch, one part after the other.

    Args:
      function: (rows, number of the part) → a tree of arrays.
      batch: a whole batch.
      parts: how many; each has rows of every device, so that no row moves.
      mesh: the run's device mesh.
    """

    def part(number: jax.Array | int, rows: Batch) -> Any:
        rows = {name: constrain(array, mesh, "batch", *[None] * (array.ndim - 1)) for name, array in rows.items()}
        return function(rows, number)

    if parts == 1:
        return part(0, batch)
    split = {name: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}
    scanned = jnp.arange(parts), split
    shapes = jax.eval_shape(lambda scanned: part(*jax.tree.map(lambda x: x[0], scanned)), scanned)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(lambda carry, some: (jax.tree.map(jnp.add, carry, part(*some)), None), zeros, scanned)
    return total
