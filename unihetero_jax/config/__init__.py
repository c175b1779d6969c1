"""The tree of config sections, one dataclass per component, validated once when it is resolved.

An experiment is a Python file whose ``get_config()`` changes what it needs in ``defaults()``, a locked
``ml_collections.ConfigDict`` with the same tree. ``resolve`` turns that into a frozen, validated ``Config``; the rest
of the code uses only the dataclasses.
"""

from __future__ import annotations

from unihetero_jax.config.components import TowerConfig as TowerConfig
from unihetero_jax.config.data import DataConfig as DataConfig
from unihetero_jax.config.data import Mode as Mode
from unihetero_jax.config.data import SmartWatchConfig as SmartWatchConfig
from unihetero_jax.config.data import SourceConfig as SourceConfig
from unihetero_jax.config.data import TaskWeights as TaskWeights
from unihetero_jax.config.experiment_dict import experiment_dict as experiment_dict
from unihetero_jax.config.loading import load as load
from unihetero_jax.config.optimizer import OptimizerConfig as OptimizerConfig
from unihetero_jax.config.optimizer import ParameterGroupConfig as ParameterGroupConfig
from unihetero_jax.config.resolving import defaults as defaults
from unihetero_jax.config.resolving import refused_on_resume as refused_on_resume
from unihetero_jax.config.resolving import resolve as resolve
from unihetero_jax.config.resolving import to_json as to_json
from unihetero_jax.config.sections import TOWER_NAMES as TOWER_NAMES
from unihetero_jax.config.sections import AdapterConfig as AdapterConfig
from unihetero_jax.config.sections import Config as Config
from unihetero_jax.config.sections import DecoderConfig as DecoderConfig
from unihetero_jax.config.sections import DistortionConfig as DistortionConfig
from unihetero_jax.config.sections import EvaluateConfig as EvaluateConfig
from unihetero_jax.config.sections import InitConfig as InitConfig
from unihetero_jax.config.sections import LoraConfig as LoraConfig
from unihetero_jax.config.sections import ModelConfig as ModelConfig
from unihetero_jax.config.sections import RopeScalingConfig as RopeScalingConfig
from unihetero_jax.config.sections import frozen_groups as frozen_groups
from unihetero_jax.config.sections import frozen_towers as frozen_towers
from unihetero_jax.config.sections import generating_loss as generating_loss
from unihetero_jax.config.sections import mode_weights as mode_weights
from unihetero_jax.config.sections import starts_from_weights as starts_from_weights
from unihetero_jax.config.sections import table_rows as table_rows
from unihetero_jax.config.sections import target_adapter as target_adapter
from unihetero_jax.config.sections import target_section as target_section
from unihetero_jax.config.sections import target_tower as target_tower
from unihetero_jax.config.towers import cached_towers as cached_towers
from unihetero_jax.config.towers import code_count as code_count
from unihetero_jax.config.towers import latent_width as latent_width
from unihetero_jax.config.towers import pixel_tower as pixel_tower
from unihetero_jax.config.towers import reads_pixels as reads_pixels
from unihetero_jax.config.towers import target_width as target_width
from unihetero_jax.config.towers import towers_in_use as towers_in_use
from unihetero_jax.config.towers import uncached as uncached
from unihetero_jax.config.towers import visual_tokens as visual_tokens
from unihetero_jax.config.training import CheckpointConfig as CheckpointConfig
from unihetero_jax.config.training import LoggingConfig as LoggingConfig
from unihetero_jax.config.training import MeshConfig as MeshConfig
from unihetero_jax.config.training import RunConfig as RunConfig
from unihetero_jax.config.training import TrainConfig as TrainConfig
from unihetero_jax.config.tree import build as build
from unihetero_jax.config.tree import check as check
from unihetero_jax.config.tree import difference as difference
from unihetero_jax.config.tree import leaves as leaves
from unihetero_jax.config.tree import lookup as lookup
from unihetero_jax.config.tree import to_values as to_values
