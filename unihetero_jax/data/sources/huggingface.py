"""Datasets of Hugging Face on this machine, read where they are: memory maps of Arrow files, with random access."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unihetero_jax.config.components import SOURCES, SourceConfig
from unihetero_jax.config.constraints import FilePath
from unihetero_jax.data.records.record import IMAGE_TOKEN
from unihetero_jax.data.records.shards import OpenShards
from unihetero_jax.data.sources.base import Source
from unihetero_jax.errors import UsageError, first_line, nearest

# Our sets by the names that splits have there.
_SETS = {"train": "train", "test": "test", "validation": "test", "val": "test"}


@dataclass(frozen=True)
class HuggingFaceConfig(SourceConfig):
    """A dataset of Hugging Face, in files.

    Attributes:
      path: a folder of ``save_to_disk``; or a parquet file, or a folder of them. Splits are found by name as
        ``datasets`` does; ``test`` or ``validation`` is held out.
      image: the column of images: one or a list, as bytes or structs with ``bytes``; empty: there are none.
      caption: the column of captions; empty: turns (``from`` and ``value``) are in the column ``conversations``.
      prompt: what asks for a caption.
    """

    path: FilePath = ""
    image: str = "image"
    caption: str = ""
    prompt: str = "Describe this image."

    def check(self, key: str) -> None:
        """Refuse a source without a path."""
        if not self.path:
            raise UsageError(f"{key}.path='': expected a folder of save_to_disk, or parquet files")
        super().check(key)

    def location(self) -> str:
        """Return the path."""
        return self.path


@SOURCES.register("huggingface", config=HuggingFaceConfig)
class HuggingFaceSource(Source):
    """Records of the rows of each split.

    Raises:
        UsageError: There is no such dataset, or it lacks a column.
    """

    config: HuggingFaceConfig

    def __init__(self, config: HuggingFaceConfig, shards: OpenShards):
        super().__init__(config, shards)
        self._splits: dict[str, _Rows] = {}
        for name, found in _load(Path(config.path).expanduser()).items():
            if name not in _SETS:
                raise UsageError(f"{config.path}: a split {name!r}: expected one of {', '.join(_SETS)}")
            for column in filter(None, (config.image, config.caption or "conversations")):
                if column not in found.column_names:
                    there = ", ".join(found.column_names)
                    hint = nearest(column, found.column_names)
                    raise UsageError(f"{config.path}: {name} has no column {column!r}; it has {there}{hint}")
            files = tuple(file["filename"] for file in found.cache_files)
            self._splits[f"{_SETS[name]}_{'caption' if config.caption else 'vqa'}"] = _Rows(files, config)

    def counts(self) -> Mapping[str, int]:
        """Return the number of rows of each split."""
        return {split: len(rows) for split, rows in self._splits.items()}

    def records(self, split: str) -> _Rows:
        """Return the rows of a split as records."""
        return self._splits[split]


@functools.cache
def _load(path: Path) -> dict[str, Any]:
    """Return the ``datasets.Dataset`` of each split; parquet is converted to Arrow files once, in the user's cache."""
    try:
        import datasets  # optional
    except ImportError:
        raise UsageError("a source of kind 'huggingface' needs pip install 'unihetero_jax[hf]'") from None
    try:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(str(path))
        elif path.is_file():
            found = datasets.load_dataset("parquet", data_files=str(path))
        else:
            found = datasets.load_dataset(str(path))
    except UsageError:
        raise
    except Exception as error:  # of many kinds
        raise UsageError(f"{path}: datasets cannot read it: {first_line(error)}") from error
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


@dataclass(frozen=True)
class _Rows:
    """Rows of Arrow files as records; data workers map the files themselves, and need pyarrow only.

    Attributes:
        files: Arrow files, in order.
        config: Where the fields are.
    """

    files: Sequence[str]
    config: HuggingFaceConfig

    def __len__(self) -> int:
        return self._batches[1][-1] if self.files else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        batches, ends = self._batches
        index = bisect.bisect_right(ends, number)
        [row] = batches[index].slice(number - ends[index] + batches[index].num_rows, 1).to_pylist()
        config = self.config
        images = row[config.image] if config.image else []
        images = [_file(image) for image in (images if isinstance(images, list) else [images])]
        if not config.caption:
            return {"images": images, "conversations": row["conversations"]}
        asked = {"from": "human", "value": f"{IMAGE_TOKEN * len(images)}\n{config.prompt}"}
        return {"images": images, "conversations": [asked, {"from": "gpt", "value": row[config.caption]}]}

    def __reduce__(self) -> tuple[Any, ...]:
        return _Rows, (self.files, self.config)

    @functools.cached_property
    def _batches(self) -> tuple[list[Any], list[int]]:
        """Batches of rows of all files, and the number of the row after each."""
        import pyarrow  # optional

        batches: list[Any] = []
        for file in self.files:
            batches += pyarrow.ipc.open_stream(pyarrow.memory_map(file)).read_all().to_batches()
        return batches, list(itertools.accumulate(batch.num_rows for batch in batches))


def _file(image: Any) -> bytes:
    """Return an encoded image that is stored as bytes, or as a struct of bytes and a path."""
    if isinstance(image, Mapping):
        image = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    if not isinstance(image, bytes):
        raise ValueError(f"expected an encoded image, got {type(image).__name__}")
    return image
