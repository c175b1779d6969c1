"""The tree of config sections, one dataclass a component, validated once at the door.

An experiment is a Python file whose ``get_config()`` changes what it needs in ``defaults()``, a locked
``ml_collections.ConfigDict`` with the same tree. ``resolve`` turns that into a frozen, validated ``Config``; the rest
of the code sees only the dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from unihetero_jax.config.checks import validate
from unihetero_jax.config.data import DataConfig as DataConfig
from unihetero_jax.config.data import Mode as Mode
from unihetero_jax.config.data import SmartWatchConfig as SmartWatchConfig
from unihetero_jax.config.data import SourceConfig as SourceConfig
from unihetero_jax.config.data import TaskWeights as TaskWeights
from unihetero_jax.config.sections import TOWERS as TOWERS
from unihetero_jax.config.sections import AdamWConfig as AdamWConfig
from unihetero_jax.config.sections import AdapterConfig as AdapterConfig
from unihetero_jax.config.sections import CheckpointConfig as CheckpointConfig
from unihetero_jax.config.sections import CodesObjectiveConfig as CodesObjectiveConfig
from unihetero_jax.config.sections import Config as Config
from unihetero_jax.config.sections import DecoderConfig as DecoderConfig
from unihetero_jax.config.sections import EvaluateConfig as EvaluateConfig
from unihetero_jax.config.sections import GroupsConfig as GroupsConfig
from unihetero_jax.config.sections import InitConfig as InitConfig
from unihetero_jax.config.sections import LoggingConfig as LoggingConfig
from unihetero_jax.config.sections import LoraConfig as LoraConfig
from unihetero_jax.config.sections import MeshConfig as MeshConfig
from unihetero_jax.config.sections import ModelConfig as ModelConfig
from unihetero_jax.config.sections import ObjectivesConfig as ObjectivesConfig
from unihetero_jax.config.sections import OptimizerConfig as OptimizerConfig
from unihetero_jax.config.sections import ParameterGroupConfig as ParameterGroupConfig
from unihetero_jax.config.sections import PixelObjectiveConfig as PixelObjectiveConfig
from unihetero_jax.config.sections import RopeScalingConfig as RopeScalingConfig
from unihetero_jax.config.sections import RunConfig as RunConfig
from unihetero_jax.config.sections import SemanticObjectiveConfig as SemanticObjectiveConfig
from unihetero_jax.config.sections import TextObjectiveConfig as TextObjectiveConfig
from unihetero_jax.config.sections import TowerConfig as TowerConfig
from unihetero_jax.config.sections import TrainConfig as TrainConfig
from unihetero_jax.config.sections import frozen_groups as frozen_groups
from unihetero_jax.config.sections import frozen_towers as frozen_towers
from unihetero_jax.config.sections import mode_weights as mode_weights
from unihetero_jax.config.sections import pixel_tower as pixel_tower
from unihetero_jax.config.sections import starts_from_weights as starts_from_weights
from unihetero_jax.config.sections import table_rows as table_rows
from unihetero_jax.config.sections import target_adapter as target_adapter
from unihetero_jax.config.sections import target_tower as target_tower
from unihetero_jax.config.towers import cached_towers as cached_towers
from unihetero_jax.config.towers import reads_pixels as reads_pixels
from unihetero_jax.config.towers import towers_in_use as towers_in_use
from unihetero_jax.config.towers import uncached as uncached
from unihetero_jax.config.towers import visual_tokens as visual_tokens
from unihetero_jax.config.tree import build as build
from unihetero_jax.config.tree import check_value as check_value
from unihetero_jax.config.tree import describe as describe
from unihetero_jax.config.tree import difference
from unihetero_jax.config.tree import field_types as field_types
from unihetero_jax.config.tree import lookup as lookup
from unihetero_jax.config.tree import tables as tables

# What may differ between a run and its continuation: how long, where and how it is watched, never what is learned.
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
    "data.workers",
    "data.threads",
    "data.read_ahead",
    "data.memory_mb",
    "data.open_shards",
    "data.max_bad_records",
    "data.max_bad_share",
)

# What the versions that did not have a key did.
BEFORE = {
    "train.spike_window": 100,
    "train.spike_loss": 0.0,
    "train.spike_norm": 0.0,
    "data.smart_watch.withheld": "",
    "data.smart_watch.told": 0.0,
}


def defaults() -> ml_collections.ConfigDict:
    """The default config as a locked ``ConfigDict``: unknown keys and wrong types raise when they are set."""
    made = ml_collections.ConfigDict(dataclasses.asdict(Config())).lock()
    for key, _ in tables(Config):
        lookup(made, key).unlock()
    return made


def resolve(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """A validated ``Config`` from a (possibly partial) nested mapping, such as the ``ConfigDict`` of ``defaults()``.

    Raises:
      UsageError: naming the key, what was expected and the nearest valid key.
    """
    # A ConfigDict is no Mapping.
    config = build(Config, values.to_dict() if isinstance(values, ml_collections.ConfigDict) else values, "config")
    validate(config)
    return config


def refused_on_resume(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differing keys that a continued run may not change."""
    given: Mapping[str, Any] = old
    for key, value in BEFORE.items():
        given = _with(given, key.split("."), value)
    return [
        key
        for key in difference(given, new)
        if not any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)
    ]


def _with(values: Mapping[str, Any], key: list[str], value: Any) -> dict[str, Any]:
    """The values with one more, unless they have it or lack its section."""
    name, *rest = key
    if not rest:
        return {name: value, **values}
    inner = values.get(name)
    return {**values, name: _with(inner, rest, value)} if isinstance(inner, Mapping) else dict(values)


def to_json(config: RunConfig) -> str:
    """The config as indented JSON with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
