"""Folders of safetensors, written tensor by tensor; a folder appears when it is complete.

The format (huggingface.co/docs/safetensors): the header's length as 8 bytes little-endian, the header as JSON (type,
shape and byte range of each tensor), then the bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unihetero_jax.errors import UsageError
from unihetero_jax.weights.tensors import DTYPES

SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write; ``read`` is called when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
    folder: Path, tensors: Sequence[Tensor], files: Mapping[str, str | bytes], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes ``model.safetensors``, or shards and their index, and other files beside them.

    Args:
      folder: made here; it may exist when it is empty.
      tensors: in order; one after another is in memory.
      files: content by file name, such as of ``config.json``.
      shard_bytes: most bytes of a shard; a tensor larger than that has a shard of its own.

    Raises:
      UsageError: the folder holds something, or cannot be written.
    """
    shards = _shards(tensors, shard_bytes)
    with new_folder(folder) as part:
        index: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            _write_shard(part / name, shard)
            index |= {tensor.name: name for tensor in shard}
        contents = dict(files)
        if len(shards) > 1:
            total = sum(tensor.size for tensor in tensors)
            values: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": index}
            contents["model.safetensors.index.json"] = json.dumps(values, indent=2) + "\n"
        for name, content in contents.items():
            (part / name).write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A place to write in that becomes ``folder`` at the end, all of it or nothing.

    Raises:
      UsageError: the folder holds something, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists; expected a name for a new folder, or an empty one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.part-"))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        yield part
        # mkdtemp makes folders that only their owner can read.
        part.chmod(0o755)
        os.replace(part, folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _shards(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.size for other in shards[-1]) + tensor.size > limit:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _write_shard(file: Path, tensors: Sequence[Tensor]) -> None:
    # transformers refuses a file whose metadata does not name a framework.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            array = np.asarray(tensor.read(), order="C")
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise ValueError(f"{tensor.name}: {array.dtype}{array.shape}, announced {tensor.dtype}{tensor.shape}")
            out.write(array.reshape(-1).view(np.uint8))
        out.flush()
        os.fsync(out.fileno())
