"""Configs of ``unihetero towers train KIND``: the sections that every kind has, and the kinds. No JAX here.

A file's ``get_config()`` changes what it needs in ``defaults(kind)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import ml_collections

from unihetero_jax.config import (
    CheckpointConfig,
    LoggingConfig,
    MeshConfig,
    OptimizerConfig,
    SmartWatchConfig,
    TrainConfig,
    build,
    check,
    experiment_dict,
    to_values,
)
from unihetero_jax.config.components import OPTIMIZERS
from unihetero_jax.config.constraints import FREE_ON_RESUME, PER_HOST, NonNegativeInt, PositiveInt
from unihetero_jax.config.data import check_workers
from unihetero_jax.config.loading import Tree
from unihetero_jax.config.registry import Registry
from unihetero_jax.errors import UsageError

# The run config of each kind, and its learner, a subclass of ``common.TowerLearner``.
TRAINED_TOWERS: Registry[Any] = Registry("trained tower", "unihetero_jax.train.towers", module="learner")


@dataclass(frozen=True)
class TowerDataConfig:
    """Where images and their captions come from; a row holds one sample with its image.

    Attributes:
      root: directory of the dataset; empty: ``WORKDIR/data``.
      task: the task whose records are read; the answers of ``caption`` and ``vqa`` are an image's caption.
      image_size: pixels per side of the batch's images (others are resized), and of a dataset that is built.
      seq_len: the sequence length: most tokens of a sample.
      workers: processes that make batches, as for other runs.
      threads: threads per worker that decode images.
      read_ahead: batches made ahead of training.
      max_bad_records: unreadable records that are skipped before the run fails.
      smart_watch: the dataset that is built where there is none.
    """

    root: str = ""
    task: Literal["caption", "vqa", "generation"] = "caption"
    image_size: PositiveInt = 64
    seq_len: PositiveInt = 64
    workers: Annotated[int, PER_HOST] = 0
    threads: Annotated[NonNegativeInt, PER_HOST] = 2
    read_ahead: Annotated[NonNegativeInt, PER_HOST] = 2
    max_bad_records: Annotated[NonNegativeInt, FREE_ON_RESUME] = 100
    smart_watch: SmartWatchConfig = field(default_factory=SmartWatchConfig)

    def check(self, key: str) -> None:
        """Refuse more workers than any machine has a use for."""
        check_workers(self.workers, f"{key}.workers")


@dataclass(frozen=True)
class TowerEvaluateConfig:
    """What is measured when training ends.

    Attributes:
      at_end: whether anything is.
      images: largest number of held-out images.
      candidates: images and captions among which one is to be retrieved.
      pictures: reconstructions in the picture; 0: no picture.
      batch_size: images per batch.
    """

    at_end: bool = True
    images: PositiveInt = 200
    candidates: PositiveInt = 100
    pictures: NonNegativeInt = 10
    batch_size: PositiveInt = 100


@dataclass(frozen=True)
class TowerRunConfig:
    """What every run that trains a tower has.

    Attributes:
      data: where images come from.
      optimizer: the optimizer and its schedule.
      train: steps, batch and seed.
      mesh: how devices are laid out.
      checkpoint: when a checkpoint is saved, and which are retained.
      logging: what a run logs.
      evaluate: what is measured when training ends.
    """

    kind: ClassVar[str]

    data: TowerDataConfig = field(default_factory=TowerDataConfig)
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = field(default_factory=lambda: OPTIMIZERS.config("adamw")())
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: Annotated[MeshConfig, FREE_ON_RESUME] = field(default_factory=MeshConfig)
    checkpoint: Annotated[CheckpointConfig, FREE_ON_RESUME] = field(default_factory=CheckpointConfig)
    logging: Annotated[LoggingConfig, FREE_ON_RESUME] = field(default_factory=LoggingConfig)
    evaluate: Annotated[TowerEvaluateConfig, FREE_ON_RESUME] = field(default_factory=TowerEvaluateConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts, as they come back from JSON."""
        values: dict[str, Any] = json.loads(json.dumps(to_values(self)))
        return values

    def check(self, key: str) -> None:
        """Refuse settings of parts that a tower does not have."""
        if every := self.train.gradient_cosines_every:
            raise UsageError(
                f"{key}.train.gradient_cosines_every={every}: a tower has no decoder whose layers could be measured; "
                "expected 0"
            )
        if self.optimizer.groups or self.optimizer.frozen_dtype != "float32":
            name = "groups" if self.optimizer.groups else "frozen_dtype"
            raise UsageError(
                f"{key}.optimizer.{name}: all parameters of a tower are trained alike; expected the default"
            )

    @staticmethod
    def small(config: ml_collections.ConfigDict) -> None:
        """Set what the small tower of this kind on Smart Watch needs."""


def config_class(kind: str) -> type[TowerRunConfig]:
    """Return the run config of a kind.

    Raises:
      UsageError: there is no such kind; names the nearest.
    """
    section: type[TowerRunConfig] = TRAINED_TOWERS.config(kind, "config.kind")
    return section


def defaults(kind: str) -> ml_collections.ConfigDict:
    """Return the default config of a kind as a locked ``ConfigDict``: unknown keys and wrong types raise when set."""
    return experiment_dict(config_class(kind)())


def tree(kind: str) -> Tree:
    """Return the configs of a kind, for ``config.load``."""
    return Tree(config_class(kind), partial(resolve, kind), partial(_check_kind, kind))


def resolve(kind: str, values: Mapping[str, Any]) -> TowerRunConfig:
    """Build a validated config from a nested mapping; what it leaves out is as in ``defaults(kind)``.

    Raises:
      UsageError: naming the key, what was expected and the nearest valid key.
    """
    root = config_class(kind)
    _check_kind(kind, values)
    config: TowerRunConfig = build(root, values, "config")
    check(config, "config")
    return config


def _check_kind(kind: str, values: Mapping[str, Any]) -> None:
    given = values.get("kind", kind)
    if given != kind:
        raise UsageError(f"config.kind={given!r}: a config of another tower; expected {kind!r}")


def small_tower(kind: str) -> ml_collections.ConfigDict:
    """Return the config of a small tower on Smart Watch; ``configs/towers`` reports what each of them reaches."""
    config = defaults(kind)
    config.data.smart_watch.num_images = 6_000
    config.data.smart_watch.test_images = 300
    config_class(kind).small(config)
    return config


def make_autoencoder_small(config: ml_collections.ConfigDict) -> None:
    """Set what the small autoencoders on Smart Watch have in common."""
    # An absolute error is least with no hand drawn at all, as long as its place is uncertain.
    config.losses.l1 = 0.0
    config.losses.detail = 3.0
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 0.3
    config.train.batch_size = 8
    config.train.steps = 5_000
