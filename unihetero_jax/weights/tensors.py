"""Tensors in files, read one at a time: safetensors, and torch files through the extra ``torch``.

Nothing is ever unpickled but by ``torch.load(weights_only=True)``, which makes tensors and plain containers only.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from unihetero_jax.errors import UsageError, nearest

SAFETENSORS = ".safetensors"
# MAR publishes its KL-16 as a ``.ckpt``.
TORCH = (".bin", ".pt", ".pth", ".ckpt")

# Of the safetensors format; what else it knows (packed and 8-bit floats) are quantized weights, which need more than a
# change of type.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

FLOATS = tuple(DTYPES[name] for name in ("F64", "F32", "F16", "BF16"))

# What parameters of ours may be held and computed in.
PARAMETER_DTYPES: dict[str, np.dtype] = {"float32": DTYPES["F32"], "bfloat16": DTYPES["BF16"]}


def parameter_dtype(name: str) -> np.dtype:
    """The type of parameters by name.

    Raises:
      UsageError: neither ``float32`` nor ``bfloat16``.
    """
    if name not in PARAMETER_DTYPES:
        hint = nearest(str(name), PARAMETER_DTYPES)
        raise UsageError(f"dtype={name!r}: expected one of {', '.join(PARAMETER_DTYPES)}{hint}")
    return PARAMETER_DTYPES[name]


# How published folders name their weights, the better format first.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
# Where a training script's torch file keeps the parameters among other things.
_NESTED = ("state_dict", "model")


@dataclass(frozen=True)
class Stored:
    """Where a tensor is, and what it is; ``dtype`` None: one that only its format knows (named in ``kind``)."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype | None
    kind: str


class TensorFiles:
    """The tensors of a file or of a published folder, by name, in the order of the files.

    At most one file is open at a time, so a reader that goes through ``names`` holds no more than one shard.

    Args:
      path: a ``.safetensors``, ``.bin``, ``.pt``, ``.pth`` or ``.ckpt`` file, or a folder with ``model.safetensors`` or
        ``pytorch_model.bin``, whole or sharded (``….index.json``), or with one such file of another name.

    Raises:
      UsageError: no such files; a shard is missing, truncated or corrupt, or has not what the index says; a torch file
        without torch.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.names: dict[str, Stored] = {}
        self.files, index = _find(self.path)
        self._open: tuple[Path, Mapping[str, Any]] | None = None
        for file in self.files:
            for name, stored in self._list(file):
                if name in self.names:
                    raise UsageError(f"{file}: holds {name}, and so does {self.names[name].file.name}")
                self.names[name] = stored
        for name, shard in index.items():
            if name not in self.names or self.names[name].file.name != shard:
                raise UsageError(f"{self.path / shard}: has no tensor {name}, which the index says it holds")

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file that is open."""
        self._open = None

    def read(self, name: str) -> np.ndarray:
        """One tensor, read-only; of a safetensors file it is a map, whose pages are read when they are touched.

        Raises:
          UsageError: it cannot be read, or is of a type that NumPy cannot hold.
        """
        stored = self.names[name]
        if stored.dtype is None:
            raise UsageError(f"{stored.file}: {name} is {stored.kind}: expected one of {', '.join(DTYPES)}")
        with _readable(stored.file):
            content = self._content(stored.file)
            if stored.file.suffix == SAFETENSORS:
                return _map(stored, content[name])
            return _torch_to_numpy(content[name])

    def _content(self, file: Path) -> Mapping[str, Any]:
        """Of a torch file, its tensors; of a safetensors file, the first byte of each tensor."""
        if self._open is None or self._open[0] != file:
            self._open = None
            self._open = file, _offsets(file) if file.suffix == SAFETENSORS else _load_torch(file)
        return self._open[1]

    def _list(self, file: Path) -> Iterator[tuple[str, Stored]]:
        with _readable(file):
            if file.suffix != SAFETENSORS:
                for name, tensor in self._content(file).items():
                    yield name, _given(file, tensor)
                return
            # The library checks the whole header: that ranges fit the shapes, the file, and one another.
            with safetensors.safe_open(file, framework="np") as content:
                for name in content.offset_keys():
                    part = content.get_slice(name)
                    kind = part.get_dtype()
                    yield name, Stored(file, tuple(part.get_shape()), DTYPES.get(kind), kind)


class GivenTensors:
    """Tensors that somebody has read already, as ``TensorFiles`` gives those of files.

    Args:
      name: what messages call them.
      arrays: by name, of NumPy, JAX or torch.
    """

    def __init__(self, name: str, arrays: Mapping[str, Any]):
        self.path = Path(name)
        self.names = {key: _given(self.path, array) for key, array in arrays.items()}
        self._arrays = arrays

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        array = self._arrays[name]
        return _torch_to_numpy(array) if hasattr(array, "detach") else np.asarray(array)


def _given(path: Path, array: Any) -> Stored:
    kind = str(array.dtype).removeprefix("torch.")
    return Stored(path, tuple(array.shape), _numpy_dtype(kind), kind)


def _offsets(file: Path) -> dict[str, int]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _map(stored: Stored, offset: int) -> np.ndarray:
    assert stored.dtype is not None
    if 0 in stored.shape:
        return np.empty(stored.shape, stored.dtype)  # nothing cannot be mapped
    return np.memmap(stored.file, stored.dtype, "r", offset, stored.shape)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, OSError, EOFError) as error:
        raise UsageError(f"{file}: cannot be read, corrupt or truncated? {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _find(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files of ``path``, and of each tensor the file's name where an index tells it."""
    if path.is_file():
        if path.suffix not in (SAFETENSORS, *TORCH):
            raise UsageError(f"{path}: expected a file that ends in {', '.join((SAFETENSORS, *TORCH))}")
        return [path], {}
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder; expected a folder of weights, or a file of them")
    for name in _WHOLE:
        if (path / f"{name}.index.json").is_file():
            index = _read_index(path / f"{name}.index.json")
            return [path / shard for shard in sorted(set(index.values()))], index
        if (path / name).is_file():
            return [path / name], {}
    for suffix in (SAFETENSORS, *TORCH):
        found = sorted(entry for entry in path.iterdir() if entry.suffix == suffix)
        if len(found) == 1:
            return found, {}
        if found:
            raise UsageError(
                f"{path}: {len(found)} {suffix} files and no {_WHOLE[0]}.index.json that tells which to read"
            )
    raise UsageError(f"{path}: no weights; expected {_WHOLE[0]}, {_WHOLE[0]}.index.json or {_WHOLE[1]}")


def _read_index(file: Path) -> dict[str, str]:
    try:
        index = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file}: expected JSON with a weight_map from tensors to files ({_one_line(error)})"
        ) from error
    if not isinstance(index, dict) or not all(isinstance(shard, str) for shard in index.values()):
        raise UsageError(f"{file}: weight_map: expected file names by tensor name")
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard:
            raise UsageError(f"{file}: {shard!r} is no name of a file beside it")
        if not (file.parent / shard).is_file():
            raise UsageError(f"{file.parent / shard}: missing, named in {file.name}; is the download complete?")
    return index


def _load_torch(file: Path) -> Mapping[str, Any]:
    """The tensors of a torch file, memory-mapped where its format allows."""
    # Optional, and takes seconds to import.
    try:
        import torch
    except ImportError:
        raise UsageError(f"{file}: a torch file; reading it needs torch: pip install unihetero_jax[torch]") from None

    def load(mmap: bool) -> Any:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        try:
            content = load(mmap=True)
        except RuntimeError as error:
            # Files from before torch 1.6 are no zip archives and cannot be mapped.
            if "mmap" not in str(error):
                raise
            content = load(mmap=False)
    except pickle.UnpicklingError:
        raise UsageError(
            f"{file}: holds more than tensors (or is corrupt), and is not read: that could run whatever it contains"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read, corrupt or truncated? {_one_line(error)}") from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UsageError(f"{file}: expected tensors by name, alone or under {' or '.join(_NESTED)}")
    return content


def _numpy_dtype(kind: str) -> np.dtype | None:
    if kind == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    try:
        return np.dtype(kind)
    except TypeError:
        return None


def _torch_to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
