"""A ``grain.MapDataset`` of the user's, made by a function that the config names."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unihetero_jax.config.components import SOURCES, SourceConfig
from unihetero_jax.config.user_files import import_components
from unihetero_jax.data.records.record import TASKS, Task
from unihetero_jax.data.records.shards import OpenShards
from unihetero_jax.data.sources.base import Source
from unihetero_jax.errors import UsageError, nearest


@dataclass(frozen=True)
class GrainConfig(SourceConfig):
    """A dataset that a function of yours makes with grain.

    Attributes:
      dataset: the function, such as ``my_lab.data:make``. It returns a ``grain.MapDataset`` of training records, or a
        dict of them by split, such as ``{"train_vqa": …, "test_vqa": …}``.
      task: task of the records where it returns one dataset.
      version: of what the function reads; a run is continued with the same version only.
    """

    dataset: str = ""
    task: Task = "vqa"
    version: str = ""

    def check(self, key: str) -> None:
        """Import the function's module, and refuse what is no function."""
        module, _, name = self.dataset.partition(":")
        if not (module and name) or "/" in module:
            raise UsageError(f"{key}.dataset={self.dataset!r}: expected MODULE:FUNCTION, such as 'my_lab.data:make'")
        import_components([module], key=f"{key}.dataset")
        names = vars(importlib.import_module(module))
        if not callable(names.get(name)):
            raise UsageError(f"{key}.dataset={self.dataset!r}: no function {name} in {module}{nearest(name, names)}")
        super().check(key)

    def imports(self) -> tuple[str, ...]:
        """Return the function's module."""
        return (self.dataset.partition(":")[0],)

    def location(self) -> str:
        """Return the function's name."""
        return self.dataset


@functools.cache
def _call(function: Callable[[], Any]) -> Any:
    """Return what a function makes; a run opens its sources several times, and it may be slow."""
    return function()


@SOURCES.register("grain", config=GrainConfig)
class GrainSource(Source):
    """Records of the datasets that the function returns.

    Raises:
        UsageError: The function returns something else.
    """

    config: GrainConfig

    def __init__(self, config: GrainConfig, shards: OpenShards):
        super().__init__(config, shards)
        module, _, name = config.dataset.partition(":")
        made = _call(getattr(importlib.import_module(module), name))
        self._splits: Mapping[str, Any] = made if isinstance(made, Mapping) else {f"train_{config.task}": made}
        for split, records in self._splits.items():
            if split.partition("_")[2] not in TASKS:
                raise UsageError(f"{config.dataset}: a split {split!r}: expected SET_TASK, such as 'train_vqa'")
            if not (hasattr(records, "__len__") and hasattr(records, "__getitem__")):
                raise UsageError(
                    f"{config.dataset}: a {type(records).__name__} for {split}: expected a grain.MapDataset"
                )

    def counts(self) -> Mapping[str, int]:
        """Return the number of records of each split; what a filter drops is among them."""
        return {split: len(records) for split, records in self._splits.items()}

    def records(self, split: str) -> Any:
        """Return the dataset of a split."""
        return self._splits[split]
