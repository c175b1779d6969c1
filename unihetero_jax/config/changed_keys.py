"""What a config changes from the defaults: the part of it that identifies a run or a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unihetero_jax.config.sections import Config
from unihetero_jax.config.tree import choose


def changed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the defaults, by dotted key.

    A component of another kind than the default one is compared with the defaults of its kind. So a key added by a
    later version, at its default, changes nothing.

    Args:
      values: a config, or a part of one, as nested dicts.
    """
    default, chosen = flatten(Config().to_dict()), flatten(choose(Config(), values).to_dict())
    return {
        key: value
        for key, value in flatten(values).items()
        if key not in chosen or value != chosen[key] or (key.endswith(".kind") and value != default.get(key))
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found
