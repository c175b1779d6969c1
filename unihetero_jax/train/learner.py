"""What the training loop asks of whatever it trains: a model, its losses and its parameters.

The loop, the step, the state and the checkpoints know nothing else of a model; another model or another set of losses
is another learner, not another trainer.
"""

from __future__ import annotations

import pathlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import optax
from jax.sharding import Mesh

from unihetero_jax.config import ParameterGroupConfig, RunConfig
from unihetero_jax.data.packing.row_stream import DataState, PackedBatch
from unihetero_jax.model.flops import Part
from unihetero_jax.parallel.definition import ModelDefinition, Params
from unihetero_jax.parallel.paths import Path
from unihetero_jax.train.optimizers.base import make_optimizer

Batch = Mapping[str, jax.Array]
Scalars = dict[str, jax.Array]


class Stream(Protocol):
    """Batches of some rows of the global batch, each with the data state after it."""

    def __next__(self) -> tuple[PackedBatch, DataState]: ...

    def close(self) -> None:
        """Stop whatever makes batches ahead of time."""


OpenStream = Callable[[list[int], DataState | None], Stream]


class Learner(ABC):
    """A model under training. The methods that compute are pure, and run inside the compiled step.

    A batch is seen in ``train.accumulation`` parts. What ``loss_sums`` gives for each of them is added up, so it holds
    sums, never means; the weights to divide by are those of the whole batch, known before the first forward pass.

    Attributes:
      config: of the run.
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
        """Σ weight of each loss over a whole batch."""

    @abstractmethod
    def loss_sums(
        self, params: Params, ema: Params, batch: Batch, key: jax.Array, mesh: Mesh | None
    ) -> tuple[Scalars, Any]:
        """Σ weight · loss of each loss over a part of a batch, and monitors.

        Args:
          params: all parameters, trained and frozen.
          ema: the moving average of ``averaged``.
          batch: rows of a packed batch.
          key: for whatever is random here.
          mesh: where activations are constrained to.

        Returns:
          The sums; and monitors: any tree of arrays that may be added up over parts of a batch, for ``metrics``.
        """

    @abstractmethod
    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """The loss of a step, or what some of its rows add to it."""

    def metrics(self, monitors: Any, sums: Scalars, totals: Scalars) -> Scalars:
        """What is reported besides the losses, from the monitors and sums of the whole batch: scalars by name."""
        del monitors, sums, totals
        return {}

    def work(self) -> Sequence[Part]:
        """FLOPs of a step over the global batch, by parts of the model; empty: they are not counted, and MFU is not."""
        return ()

    @property
    def precise(self) -> bool:
        """Whether matrix products are float32 throughout, also on chips whose default is fewer bits."""
        return False

    def group(self, path: Path) -> ParameterGroupConfig:
        """Return how the parameter at a path is trained."""
        del path
        return ParameterGroupConfig()

    def optimizer(self) -> optax.GradientTransformation:
        """Return the optimizer of the trained parameters."""
        return make_optimizer(self.config.optimizer, self.config.train.steps, self.group)

    def initial_params(self) -> Params:
        """The parameters before the first step, as training holds them; pure in the config's seed."""
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), 0)
        return self.model.init(key)

    def split(self, params: Params) -> tuple[Params, Params]:
        """(trained, frozen) parts of the parameters, or of a tree in their shape."""
        return params, {}

    def averaged(self, trained: Params) -> Params:
        """The part of the trained parameters that has a moving average; empty: none."""
        del trained
        return {}

    def layers(self, trained: Params) -> Params:
        """The part of the trained parameters whose arrays begin with an axis of layers; empty: there is none."""
        del trained
        return {}

    @property
    def ema_decay(self) -> float:
        """Of the moving average."""
        return 0.0

    @abstractmethod
    def check(self, mesh: Mesh) -> None:
        """Refuses a mesh that the model or the batch cannot be split over.

        Raises:
          UsageError: naming the sizes that do not divide.
        """

    def start(self, params: Params, mesh: Mesh) -> Params:
        """Initial parameters, some of them replaced by the weights that a new run starts from."""
        del mesh
        return params

    @property
    def partial(self) -> bool:
        """Whether checkpoints hold only the trained part of the parameters, and say of the rest what it is."""
        return False

    def base(self, params: Params) -> dict[str, str] | None:
        """What a partial checkpoint says of the parameters that it does not hold."""
        del params
        return None

    def complete(self, stored: Params, base: Mapping[str, str], path: pathlib.Path, mesh: Mesh) -> Params:
        """All parameters, from what a partial checkpoint holds and what it says of the rest.

        Args:
          stored: what it holds.
          base: what it says of the rest.
          path: of the checkpoint.
          mesh: of the run.

        Raises:
          UsageError: what is made here is not what the checkpoint was trained with.
        """
        del base, path, mesh
        return stored


def split_rows(array: jax.Array, parts: int) -> jax.Array:
    """[B, …] → [parts, B / parts, …], each part with rows of every device, so that no row moves."""
    return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)
