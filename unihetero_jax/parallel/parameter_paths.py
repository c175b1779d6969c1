"""Trees of parameters: nested dicts of arrays, each at a path of names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

Params = dict[Any, Any]
Path = tuple[str | int, ...]  # a number is an index in a list of modules


def dotted(path: Path) -> str:
    """Return a path as text: ``decoder.layers.query.kernel``."""
    return ".".join(map(str, path))


def select(tree: Params, wanted: Callable[[Path], bool], path: Path = ()) -> Params:
    """Return the part of nested dicts whose leaves' paths are wanted, without empty branches."""
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
    """Merge nested dicts; where both have a leaf, take that of ``right``."""
    both = dict(left)
    for name, value in right.items():
        both[name] = join(both[name], value) if isinstance(value, dict) and name in both else value
    return both


def map_with_path(function: Callable[..., Any], tree: Params, *others: Params) -> Params:
    """Apply ``function(path, leaf, …)`` to every leaf of nested dicts of the same structure."""
    return jax.tree.map_with_path(
        lambda keys, *leaves: function(tuple(key.key for key in keys), *leaves), tree, *others
    )
