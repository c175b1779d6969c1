"""From nested values to a validated ``Config``, and what a resumed run may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from unihetero_jax.config import user_files
from unihetero_jax.config.checks import validate
from unihetero_jax.config.experiment_dict import ExperimentDict, experiment_dict
from unihetero_jax.config.sections import Config
from unihetero_jax.config.towers import with_what_is_used
from unihetero_jax.config.training import RunConfig
from unihetero_jax.config.tree import build, difference

# What may differ when a run is resumed: its length, place and monitoring, never what is learned.
FREE_ON_RESUME = (
    "train.steps",
    "train.hang_timeout",
    "train.max_skipped_updates",
    "train.on_spike",
    "train.max_rollbacks",
    "train.gradient_cosines_every",
    "mesh",
    "checkpoint",
    "logging",
    "evaluate",
    "evaluators",
    "data.workers",
    "data.threads",
    "data.read_ahead",
    "data.memory_mb",
    "data.open_shards",
    "data.max_bad_records",
    "data.max_bad_share",
)

# Values of keys that earlier versions did not have.
BEFORE = {
    "train.spike_window": 100,
    "train.spike_loss": 0.0,
    "train.spike_norm": 0.0,
    "data.smart_watch.withheld": "",
    "data.smart_watch.told": 0.0,
}


def defaults() -> ExperimentDict:
    """Return the default config as a locked ``ConfigDict``: unknown keys and wrong types raise when they are set."""
    return experiment_dict(Config())


def resolve(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """Build a validated ``Config`` from a nested mapping, possibly partial, such as the one of ``defaults()``.

    Raises:
      UsageError: naming the key, what was expected and the nearest valid key.
    """
    if isinstance(values, ml_collections.ConfigDict):  # which is not a Mapping
        values = values.to_dict()
    if isinstance(names := values.get("imports", ()), tuple | list):
        user_files.import_components(name for name in names if isinstance(name, str))
    config: Config = build(Config, values, "config")
    config = with_what_is_used(config)
    validate(config)
    return config


def refused_on_resume(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the differing keys that a resumed run may not change."""
    given: Mapping[str, Any] = old
    for key, value in BEFORE.items():
        given = _with(given, key.split("."), value)
    return [
        key
        for key in difference(given, new)
        if not any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)
    ]


def _with(values: Mapping[str, Any], key: list[str], value: Any) -> dict[str, Any]:
    """Return the values with one more, unless they have it or lack its section."""
    name, *rest = key
    if not rest:
        return {name: value, **values}
    inner = values.get(name)
    return {**values, name: _with(inner, rest, value)} if isinstance(inner, Mapping) else dict(values)


def to_json(config: RunConfig) -> str:
    """Format the config as indented JSON with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
