"""The train step lowered for a mesh from shapes alone: nothing is allocated, and the devices need not be here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from unihetero_jax.config import Config, cached_towers, reads_pixels
from unihetero_jax.data.pipeline import row_shape
from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import check_sharded, sharding
from unihetero_jax.train.state import State, state_shardings
from unihetero_jax.train.step import compile_step, make_step
from unihetero_jax.train.unified import UnifiedLearner


@dataclass(frozen=True)
class AbstractState:
    """A learner and its train state as shapes.

    Attributes:
      learner: the learner.
      optimizer: its optimizer.
      shapes: the train state as ``jax.ShapeDtypeStruct`` with shardings.
      shardings: the sharding of each array of the state.
    """

    learner: UnifiedLearner
    optimizer: optax.GradientTransformation
    shapes: State
    shardings: State


def abstract_state(config: Config, vocabulary: int, mesh: Any) -> AbstractState:
    """Build the train state of a run as shapes.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
      mesh: the mesh, a ``Mesh`` or ``AbstractMesh``.
    """
    learner = UnifiedLearner(config, define(config, vocabulary))
    optimizer = learner.optimizer()
    shapes, shardings = state_shardings(learner, optimizer, mesh)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
    )
    return AbstractState(learner, optimizer, placed, shardings)


def batch_shapes(config: Config, where: NamedSharding | None) -> dict[str, Any]:
    """Build the arrays of a packed batch as shapes.

    Args:
      config: the run's configuration.
      where: the batch's sharding.
    """
    rows, row = config.train.batch_size, row_shape(config, None, reads_pixels(config))

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=where)

    batch = {name: array((row.slots,), jnp.int32) for name in ("tokens", "segment", "position", "image", "patch")}
    batch |= {name: array((row.slots,), jnp.float32) for name in ("text_weight", "visual_weight")}
    batch |= {"role": array((row.images,), jnp.int8), "skipped": array((len(SKIP_REASONS),), jnp.int32)}
    if row.pixels:
        batch["images"] = array((row.images, row.image_size, row.image_size, 3), jnp.uint8)
    for name, section in cached_towers(config).items():
        key = f"config.model.{name}"
        shape = (row.images, section.tokens(row.image_size, key), section.stored_features)
        batch[f"{name}_features"] = array(shape, jnp.float16)
    return batch


def lower(config: Config, vocabulary: int, mesh: Mesh) -> tuple[Any, AbstractState]:
    """Lower the train step for a mesh.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
      mesh: the mesh; its devices may be descriptions of absent ones.

    Returns:
      The lowered step, to be compiled, and its state as shapes.

    Raises:
      UsageError: the mesh does not divide what it has to.
    """
    state = abstract_state(config, vocabulary, mesh)
    state.learner.check(mesh)
    check_sharded(state.shapes["params"], state.shardings["params"])
    step = compile_step(make_step(state.learner, state.optimizer, mesh), state.shardings, mesh)
    return step.lower(state.shapes, batch_shapes(config, sharding(mesh, "batch"))), state


def bytes_per_chip(tree: Any) -> int:
    """Count the bytes of one device's shards of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "sharding")
    )
