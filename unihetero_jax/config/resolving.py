"""From nested values to a validated ``Config``, and what a resumed run may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from unihetero_jax.config import user_files
from unihetero_jax.config.changed_keys import flatten
from unihetero_jax.config.checks import validate
from unihetero_jax.config.constraints import FREE_ON_RESUME
from unihetero_jax.config.experiment_dict import ExperimentDict, experiment_dict
from unihetero_jax.config.sections import Config
from unihetero_jax.config.towers import with_what_is_used
from unihetero_jax.config.training import RunConfig
from unihetero_jax.config.tree import build, difference, is_below, marked_keys


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


def refused_on_resume(old: Mapping[str, Any], new: Mapping[str, Any], section: type = Config) -> list[str]:
    """Return the differing keys that a resumed run may not change.

    A key that an earlier version did not have counts as its default.

    Args:
      old: the values that the run was started with, as nested dicts.
      new: the values that it is resumed with.
      section: the class of the config.
    """
    free = list(marked_keys(section, FREE_ON_RESUME))
    stored, given, default = flatten(old), flatten(new), flatten(section().to_dict())
    return [
        key
        for key in difference(old, new)
        if not is_below(key, free)
        and (key in stored or key not in given or key not in default or given[key] != default[key])
    ]


def to_json(config: RunConfig) -> str:
    """Format the config as indented JSON with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
