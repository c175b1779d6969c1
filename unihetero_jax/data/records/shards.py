"""Random access to the records of stored datasets: thousands of shards through a bounded number of open files.

The manifest alone locates a record, so that a dataset of 8,192 shards opens without touching any.
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

from unihetero_jax.data.records.example import parse
from unihetero_jax.data.records.manifest import Manifest, load_manifest
from unihetero_jax.errors import UsageError, first_line, nearest

# ArrayRecord's read-ahead and threads would fetch megabytes for each record of a shuffled order. Its index in memory
# costs 8 bytes per record; without it, every read would read the index first.
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 1 << 14
# Enough for a dataset that is read in order, or that has few shards.
_OPEN = 64
# A network file system fails briefly now and then, and a skipped record is never tried again.
_RETRY_DELAYS_S = (0.1, 0.5, 2.0, None)


class OpenShards:
    """Readers of shards; the least recently used are closed when there are too many.

    Args:
        most: Most files that are open at a time.
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
        """Return the bytes of a record.

        Args:
            path: Path of the shard.
            records: Number of records that it should contain.
            number: Index of the record in the shard, from 0.

        Raises:
            UsageError: The shard contains another number of records.
            OSError: The shard cannot be read, or is damaged at the record.
        """
        for delay in _RETRY_DELAYS_S:
            try:
                [data] = self._reader(path, records).read(number, number + 1)
                return data
            except (RuntimeError, OSError, IndexError) as error:  # ArrayRecord raises RuntimeErrors
                self._forget(path)
                if delay is None or not _is_transient(error):
                    raise OSError(f"{path}, record {number}: {first_line(error)}") from error
                time.sleep(delay)
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
            if not os.path.exists(path):  # ArrayRecord opens it as an empty one
                raise FileNotFoundError(f"no such file, though the manifest lists it: {path}")
            raise UsageError(f"{path} holds {found:,} records, and the manifest beside it says {records:,}")
        with self._lock:
            self._readers[path] = reader
            while len(self._readers) > self._most:
                # Not closed here: another thread may be reading. The file is closed when its last user is done.
                self._readers.popitem(last=False)
        return reader

    def _forget(self, path: str) -> None:
        with self._lock:
            self._readers.pop(path, None)


class Split:
    """Random access to the records of one split, across its shards.

    Args:
        paths: Paths of the shards, in order.
        counts: Records in each shard.
        shards: Reader of the files.
    """

    def __init__(self, paths: Sequence[str], counts: Sequence[int], shards: OpenShards):
        self._paths, self._counts, self._shards = paths, counts, shards
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return a record, as `unihetero_jax.data.records.example.parse` returns it.

        Raises:
            IndexError: The number is out of range.
            OSError, ValueError: The record cannot be read or parsed.
        """
        return parse(self.bytes(number))

    def bytes(self, number: int) -> bytes:
        """Return a record's bytes; raises as indexing does."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        shard = bisect.bisect_right(self._ends, number)
        first = self._ends[shard] - self._counts[shard]
        return self._shards.read(self._paths[shard], self._counts[shard], number - first)


class Dataset:
    """A stored dataset: its manifest and its splits.

    Args:
        root: Directory of the dataset.
        shards: Reader of its files, which several datasets may share.

    Raises:
        UsageError: The directory does not hold a complete dataset.
    """

    def __init__(self, root: Path, shards: OpenShards | None = None):
        self.root = root
        self.manifest: Manifest = load_manifest(root)
        self._shards = shards or OpenShards(_OPEN)

    def split(self, name: str) -> Split:
        """Open a split.

        Raises:
            UsageError: The dataset has no split of that name.
        """
        counts = self.manifest.counts
        if name not in counts:
            raise UsageError(
                f"{self.root}: no split {name!r}; it has {', '.join(sorted(counts))}{nearest(name, list(counts))}"
            )
        pattern = f"-{name}.array_record-"
        paths = sorted(file for file in self.manifest.files if pattern in file)
        records = self.manifest.shards.get(name)
        if records is None:  # a dataset of an older version
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
        raise UsageError(f"{path}: no whole ArrayRecord file: {first_line(error)}") from error


def _is_transient(error: BaseException) -> bool:
    """Return whether trying again can help; damage and missing files stay."""
    return not isinstance(error, IndexError) and not any(
        word in str(error).lower() for word in ("corrupt", "invalid", "out of range", "data_loss", "no such")
    )
