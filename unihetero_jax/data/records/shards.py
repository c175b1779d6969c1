"""Random access to the records of stored datasets: thousands of shards through a bounded number of open files.

Where a record lies is known from the manifest alone, so that a dataset of 8,192 shards opens without touching any.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from unihetero_jax.data.records.manifest import Manifest, load_manifest
from unihetero_jax.data.records.record import parse
from unihetero_jax.errors import UsageError, nearest

# Reading ahead and threads of its own would fetch megabytes for each record of a shuffled order. An index in memory
# costs 8 bytes a record, and without it every read reads the index first.
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 1 << 14
# Enough for a dataset that is read in order, or whose shards are few.
_OPEN = 64
# A store over a network fails for a moment now and then; a record that is skipped is skipped for good.
_PAUSES_S = (0.1, 0.5, 2.0, None)


class OpenShards:
    """Readers of shards, the least recently used of which are closed when there are too many.

    Args:
      most: files that are open at a time, at most.
    """

    def __init__(self, most: int):
        assert most > 0
        self._most = most
        self._readers: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process opens files of its own.
        return OpenShards, (self._most,)

    def read(self, path: str, records: int, number: int) -> bytes:
        """The bytes of a record.

        Args:
          path: of the shard.
          records: that it holds.
          number: of the record, from 0.

        Raises:
          UsageError: the shard holds another number of records.
          OSError: it cannot be read, or is damaged there.
        """
        for pause in _PAUSES_S:
            try:
                [data] = self._reader(path, records).read(number, number + 1)
                return data
            except (RuntimeError, OSError, IndexError) as error:  # ArrayRecord's own are RuntimeErrors
                self._forget(path)
                if pause is None or not _may_pass(error):
                    raise OSError(f"{path}, record {number}: {_first_line(error)}") from error
                time.sleep(pause)
        raise AssertionError("unreachable: the last try raises")

    def _reader(self, path: str, records: int) -> Any:
        with self._lock:
            reader = self._readers.get(path)
            if reader is not None:
                self._readers.move_to_end(path)
                return reader
        reader = array_record_module.ArrayRecordReader(path, _RANDOM_ACCESS, file_reader_buffer_size=_BUFFER_BYTES)
        found = reader.num_records()
        if found != records:
            if not os.path.exists(path):  # which ArrayRecord opens as an empty one
                raise FileNotFoundError(f"no such file, though the manifest lists it: {path}")
            raise UsageError(f"{path} holds {found:,} records, and the manifest beside it says {records:,}")
        with self._lock:
            self._readers[path] = reader
            while len(self._readers) > self._most:
                # Not closed here: another thread may be reading. The file is closed with the last use of it.
                self._readers.popitem(last=False)
        return reader

    def _forget(self, path: str) -> None:
        with self._lock:
            self._readers.pop(path, None)


class Split:
    """The records of one split, by number, whichever shard they are in.

    Args:
      paths: of the shards, in order.
      counts: records of each.
      shards: reads them.
    """

    def __init__(self, paths: Sequence[str], counts: Sequence[int], shards: OpenShards):
        self._paths, self._counts, self._shards = paths, counts, shards
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A record, as ``data.records.record.parse`` gives it.

        Raises:
          IndexError: there is no such number.
          OSError, ValueError: it cannot be read, or is no record.
        """
        return parse(self.bytes(number))

    def bytes(self, number: int) -> bytes:
        """A record's bytes; raises as ``[number]``."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        shard = bisect.bisect_right(self._ends, number)
        first = self._ends[shard] - self._counts[shard]
        return self._shards.read(self._paths[shard], self._counts[shard], number - first)


class Dataset:
    """A stored dataset: its manifest, and its splits.

    Args:
      root: the directory.
      shards: reads its files; those of several datasets may share one.

    Raises:
      UsageError: there is no complete dataset.
    """

    def __init__(self, root: Path, shards: OpenShards | None = None):
        self.root = root
        self.manifest: Manifest = load_manifest(root)
        self._shards = shards or OpenShards(_OPEN)

    def split(self, name: str) -> Split:
        """The records of a split.

        Raises:
          UsageError: there is no split of that name.
        """
        counts = self.manifest.counts
        if name not in counts:
            raise UsageError(
                f"{self.root}: no split {name!r}; it has {', '.join(sorted(counts))}{nearest(name, list(counts))}"
            )
        pattern = f"-{name}.array_record-"
        paths = sorted(file for file in self.manifest.files if pattern in file)
        records = self.manifest.shards.get(name)
        if records is None:  # written before manifests said it
            records = [_count(self.root / path) for path in paths]
        if len(records) != len(paths) or sum(records) != counts[name]:
            raise UsageError(
                f"{self.root}: its manifest has {counts[name]:,} records of {name!r}, and {sum(records):,} in "
                f"{len(paths)} shards; build it again"
            )
        return Split([os.fspath(self.root / path) for path in paths], records, self._shards)


def _count(path: Path) -> int:
    try:
        return int(array_record_module.ArrayRecordReader(os.fspath(path), _RANDOM_ACCESS).num_records())
    except RuntimeError as error:
        raise UsageError(f"{path}: no whole ArrayRecord file: {_first_line(error)}") from error


def _may_pass(error: BaseException) -> bool:
    """Whether trying again can help: damage stays, a missing file may be one that is not seen for a moment."""
    return not isinstance(error, IndexError) and not any(
        word in str(error).lower() for word in ("corrupt", "invalid", "out of range", "data_loss", "no such")
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
