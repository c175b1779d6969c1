"""Stored datasets: directories made by ``unihetero data build`` or ``unihetero data import``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unihetero_jax.config.components import SOURCES, SourceConfig
from unihetero_jax.config.constraints import FilePath
from unihetero_jax.data.records.manifest import fingerprint, sampled_digest
from unihetero_jax.data.records.shards import Dataset, OpenShards, Split
from unihetero_jax.data.sources.base import Source
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer.loading import tokenizer_files


@dataclass(frozen=True)
class ShardsConfig(SourceConfig):
    """A stored dataset.

    Attributes:
      root: its directory.
    """

    root: FilePath = ""

    def check(self, key: str) -> None:
        """Refuse a source without a directory."""
        if not self.root:
            raise UsageError(f"{key}.root='': expected the directory of a dataset")
        super().check(key)

    def location(self) -> str:
        """Return the directory."""
        return self.root


@SOURCES.register("shards", config=ShardsConfig)
class ShardsSource(Source):
    """Records in ArrayRecord shards.

    Attributes:
        dataset: The stored dataset.

    Raises:
        UsageError: The directory does not hold a complete dataset.
    """

    def __init__(self, config: ShardsConfig, shards: OpenShards):
        super().__init__(config, shards)
        self.dataset = Dataset(Path(config.root).expanduser(), shards)

    def counts(self) -> Mapping[str, int]:
        """Return the number of records of each split."""
        return self.dataset.manifest.counts

    def records(self, split: str) -> Split:
        """Return the records of a split."""
        return self.dataset.split(split)

    def tokenizer(self) -> Path | None:
        """Return the tokenizer beside the shards, if there is one."""
        return next(iter(tokenizer_files(self.dataset.root)), None)

    def fingerprint(self) -> str:
        """Return a digest of the contents of every file."""
        return fingerprint(self.dataset.manifest)

    def contents(self) -> str:
        """Return a digest of the manifest and of samples of every file."""
        return sampled_digest(self.dataset.root, self.dataset.manifest)
