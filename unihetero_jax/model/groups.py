"""Which group of the config each parameter belongs to, and the split of a tree into what is trained and what is frozen.

A frozen parameter is no argument of the gradient: it has no gradient, no optimiser state and no part in the clipping.
It stays in the state's ``params``, sharded by the same rules, and may be held in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unihetero_jax.config import Config, OptimizerConfig, ParameterGroupConfig, frozen_groups, frozen_towers
from unihetero_jax.errors import UsageError

Params = dict[Any, Any]
Path = tuple[str | int, ...]  # a number is a place in a list of modules

# The longest prefix of a parameter's path decides. The output head goes with the embeddings, which it may be tied to.
PREFIXES = {
    "understanding_tower": "towers",
    "generation_tower": "towers",
    "pixel_tower": "towers",
    "understanding_adapter": "adapters",
    "generation_adapter": "adapters",
    "decoder": "decoder",
    "decoder.embedding": "embeddings",
    "decoder.head": "embeddings",
    "semantic_head": "heads",
    "pixel_head": "heads",
    "code_head": "heads",
    "lora": "lora",
}


def dotted(path: Path) -> str:
    """A path as it is written: ``decoder.layers.query.kernel``."""
    return ".".join(map(str, path))


def group_of(path: Path) -> str:
    """The name of a parameter's group in ``config.optimizer.groups``.

    Raises:
      ValueError: no group claims it; a new part of the model needs its line in ``PREFIXES``.
    """
    for length in range(len(path), 0, -1):
        if found := PREFIXES.get(dotted(path[:length])):
            return found
    raise ValueError(f"parameter {dotted(path)} belongs to no group; known are {', '.join(PREFIXES)}")


def settings(config: OptimizerConfig, path: Path) -> ParameterGroupConfig:
    """How a parameter is trained."""
    found: ParameterGroupConfig = getattr(config.groups, group_of(path))
    return found


def is_frozen(config: Config, path: Path) -> bool:
    """Whether training leaves a parameter as it is."""
    return group_of(path) in frozen_groups(config) or path[0] in frozen_towers(config)


def split(config: Config, params: Params) -> tuple[Params, Params]:
    """(trained, frozen) parts of a tree of parameters, or of anything in its shape; ``join`` is the inverse.

    Raises:
      UsageError: nothing would be trained.
    """
    trained = select(params, lambda path: not is_frozen(config, path))
    if not trained:
        raise UsageError(
            "config.optimizer.groups: every parameter of this model is frozen; expected one group with frozen=False"
        )
    return trained, select(params, lambda path: is_frozen(config, path))


def select(tree: Params, wanted: Callable[[Path], bool], path: Path = ()) -> Params:
    """The part of nested dicts whose leaves' paths are wanted; no branch is left empty."""
    kept: Params = {}
    for name, value in tree.items():
        here = (*path, name)
        if not isinstance(value, dict):
            if wanted(here):
                kept[name] = value
        elif below := select(value, wanted, here):
            kept[name] = below
    return kept


def join(left: Params, right: Params) -> Params:
    """Nested dicts with the leaves of both; where both have one, that of ``right``."""
    both = dict(left)
    for name, value in right.items():
        both[name] = join(both[name], value) if isinstance(value, dict) and name in both else value
    return both


def held(config: Config, params: Params) -> Params:
    """Parameters (or their shapes) of the types that training holds them in: the frozen ones in ``frozen_dtype``."""
    dtype = jnp.dtype(config.optimizer.frozen_dtype)

    def cast(path: Path, leaf: Any) -> Any:
        if leaf.dtype == dtype or not is_frozen(config, path):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
        return leaf.astype(dtype)

    return map_with_path(cast, params)


def map_with_path(function: Callable[..., Any], tree: Params, *others: Params) -> Params:
    """``function(path, leaf, …)`` of every leaf of nested dicts of the same shape, the path a tuple of names."""
    return jax.tree.map_with_path(
        lambda keys, *leaves: function(tuple(key.key for key in keys), *leaves), tree, *others
    )
