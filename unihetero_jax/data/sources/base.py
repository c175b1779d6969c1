"""Source: training records of one kind of storage, by split."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from unihetero_jax.config.components import SourceConfig
from unihetero_jax.data.records.record import Record
from unihetero_jax.data.records.shards import OpenShards


class Records(Protocol):
    """Random access to records, each a mapping of fields, a `Record`, or the bytes of a stored record.

    Data workers unpickle it, so it should hold what finds the records rather than the records themselves.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Mapping[str, Any] | Record | bytes: ...


class Source(abc.ABC):
    """Records by split. A split is named after its set and task, such as ``train_caption`` or ``test_vqa``.

    A kind of its own is a subclass, registered with its section, which is a subclass of ``SourceConfig``.

    Args:
        config: The source's section of the config.
        shards: Reader of shard files, which all sources of a run share to bound the number of open files.
    """

    def __init__(self, config: SourceConfig, shards: OpenShards):
        self.config, self.shards = config, shards

    @abc.abstractmethod
    def counts(self) -> Mapping[str, int]:
        """Return the number of records of each split."""

    @abc.abstractmethod
    def records(self, split: str) -> Records:
        """Return the records of a split of `counts`."""

    def tokenizer(self) -> Path | None:
        """Return the file of the tokenizer that comes with the records, if there is one."""
        return None

    def fingerprint(self) -> str:
        """Return a digest of what the records are, which hosts compare."""
        about = [getattr(self.config, "kind", ""), dataclasses.asdict(self.config), dict(self.counts())]
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()

    def contents(self) -> str:
        """Return a digest of what the files hold now, which a run compares with what it began with."""
        return self.fingerprint()
