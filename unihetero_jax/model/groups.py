"""The group of each parameter in the config, and the split of a tree into trained and frozen parameters.

A frozen parameter is not differentiated: it has no gradient, no optimizer state and no part in the clipping. It stays
in the state's ``params``, sharded by the same rules, and may be stored as bfloat16.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unihetero_jax.config import Config, OptimizerConfig, ParameterGroupConfig, frozen_groups, frozen_towers
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.parameter_paths import Params, Path, dotted, map_with_path, select

# The longest prefix of a parameter's path decides. The output head is with the embeddings, which it may be tied to.
PREFIXES = {
    "understanding_tower": "towers",
    "generation_tower": "towers",
    "pixel_tower": "towers",
    "understanding_adapter": "adapters",
    "generation_adapter": "adapters",
    "decoder": "decoder",
    "decoder.embedding": "embeddings",
    "decoder.head": "embeddings",
    "lora": "lora",
}


def group_of(path: Path) -> str:
    """Return the name of a parameter's group in ``config.optimizer.groups``.

    Raises:
      ValueError: it has no group; a new part of the model needs a line in ``PREFIXES``.
    """
    for length in range(len(path), 0, -1):
        if found := PREFIXES.get(dotted(path[:length])):
            return found
    if str(path[0]).endswith("_head"):
        return "heads"
    raise ValueError(f"parameter {dotted(path)} belongs to no group; known are {', '.join(PREFIXES)}")


def settings(config: OptimizerConfig, path: Path) -> ParameterGroupConfig:
    """Return how a parameter is trained."""
    return config.groups.get(group_of(path), ParameterGroupConfig())


def is_frozen(config: Config, path: Path) -> bool:
    """Return whether training does not change a parameter."""
    return group_of(path) in frozen_groups(config) or path[0] in frozen_towers(config)


def split(config: Config, params: Params) -> tuple[Params, Params]:
    """Split a tree of parameters, or one of its structure, into (trained, frozen); ``join`` is the inverse.

    Raises:
      UsageError: nothing would be trained.
    """
    trained = select(params, lambda path: not is_frozen(config, path))
    if not trained:
        raise UsageError(
            "config.optimizer.groups: every parameter of this model is frozen; expected one group with frozen=False"
        )
    return trained, select(params, lambda path: is_frozen(config, path))


def as_stored(config: Config, params: Params) -> Params:
    """Cast parameters (or their shapes) to the types that training stores: frozen ones to ``frozen_dtype``."""
    dtype = jnp.dtype(config.optimizer.frozen_dtype)

    def cast(path: Path, leaf: Any) -> Any:
        if leaf.dtype == dtype or not is_frozen(config, path):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
        return leaf.astype(dtype)

    return map_with_path(cast, params)
