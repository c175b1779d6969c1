"""What the learners of all towers have in common: one image per row, all parameters trained alike.

B rows (one image each).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.data.mixing import Mixture, Source
from unihetero_jax.data.packing.batch_stream import BatchStream, StreamOptions
from unihetero_jax.data.packing.packed_batch import RowShape
from unihetero_jax.data.packing.processes import share_of_cores
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.data.packing.rows import Recipe
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.losses.base import mean
from unihetero_jax.parallel.mesh import check_rows
from unihetero_jax.parallel.module_definition import ModelDefinition, define_module
from unihetero_jax.tokenizer.sentencepiece import Tokenizer
from unihetero_jax.train.learner import Batch, Learner, Scalars, Stream
from unihetero_jax.train.towers.base import TRAINED_TOWERS, TowerRunConfig

# Of batches made ahead, and of workers, where their number is not given.
_MEMORY_BYTES = 10**9
# An image takes no slots but those of its markers: towers see pixels.
NO_SLOTS = dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 0)


@dataclass(frozen=True)
class TowerLearner(Learner):
    """Trains a tower on images of weight 1; a registered kind is a subclass."""

    config: TowerRunConfig
    model: ModelDefinition

    @staticmethod
    @abstractmethod
    def module(config: Any, vocabulary: int, rngs: nnx.Rngs) -> nnx.Module:
        """Create what is trained: the tower, with whatever it is trained beside.

        Args:
          config: the run's configuration.
          vocabulary: token ids of the captions.
          rngs: random keys of the parameters.
        """

    @property
    @abstractmethod
    def coefficients(self) -> dict[str, float]:
        """Factor of each loss in the sum."""

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses, in the order of ``coefficients``."""
        return tuple(self.coefficients)

    def totals(self, batch: Batch) -> Scalars:
        """Return the number of images, for each loss."""
        return dict.fromkeys(self.losses, jnp.sum(image_weight(batch)))

    def combine(self, step: jax.Array, sums: Scalars, totals: Scalars) -> jax.Array:
        """Return Σ coefficient · mean."""
        del step
        means = (factor * mean(sums[name], totals[name]) for name, factor in self.coefficients.items())
        return sum(means, jnp.float32(0))

    @property
    def precise(self) -> bool:
        """Whether the tower computes in float32."""
        return bool(self.config.tower.dtype == "float32")  # type: ignore[attr-defined]

    def check(self, mesh: Mesh) -> None:
        """Refuse a mesh that the batch cannot be split over."""
        check_rows(mesh, self.config.train)

    def open_stream(self, root: Path, tokenizer: Tokenizer, rows: list[int], state: DataState | None = None) -> Stream:
        """Open the stream of some rows of the global batch.

        Args:
          root: directory of the dataset.
          tokenizer: of the dataset.
          rows: the rows to make here.
          state: of all rows, to continue from.
        """
        return batches(self.config, root, tokenizer, rows, state)


def make_learner(config: TowerRunConfig, vocabulary: int) -> TowerLearner:
    """Build what trains a config's tower; ``vocabulary`` is that of the captions.

    Raises:
      UsageError: the tower cannot be built.
    """
    kind: type[TowerLearner] = TRAINED_TOWERS.find(config.kind)
    return kind(config, define_module(lambda rngs: kind.module(config, vocabulary, rngs)))


def batches(
    config: TowerRunConfig, root: Path, tokenizer: Tokenizer, rows: list[int], state: DataState | None = None
) -> BatchStream:
    """Open a stream of packed batches with one sample and one image per row; arguments as of ``open_stream``."""
    data = config.data
    workers, threads = share_of_cores(data.workers, data.threads, len(rows), _MEMORY_BYTES)
    records = Dataset(root).split(f"train_{data.task}")
    recipe = Recipe(
        Mixture([Source(data.task, records, 1.0)], config.train.seed),
        tokenizer,
        NO_SLOTS,
        RowShape(data.seq_len, 1, data.image_size),
        config.train.batch_size,
        # The sample that is drawn after the one of a row belongs to the next row.
        window=1,
    )
    options = StreamOptions(workers, threads, data.read_ahead, _MEMORY_BYTES, data.max_bad_records)
    return BatchStream(recipe, rows, options, state)


def image_weight(batch: Batch) -> jax.Array:
    """Return 1 for a row with an image and 0 for one without, [B]."""
    return (batch["role"][:, 0] > 0).astype(jnp.float32)
