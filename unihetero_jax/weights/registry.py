"""The door for weights: which loader reads which ``model_type`` of a Hugging Face folder.

A loader is imported when it is needed. To add a family: its model types here, and its loader in ``_load``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.config import DecoderConfig
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.weights.writer import SHARD_BYTES

# model_type of a config.json → the kind of module that it becomes.
HF_FAMILIES: dict[str, str] = {
    "llama": "decoder",
    "qwen2": "decoder",
    "qwen3": "decoder",
}


def from_hf(folder: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None, **options: Any) -> Any:
    """A module with the weights of a published folder (``config.json`` and safetensors or torch files).

    A language model has ``logits(tokens_BT) -> [B, T, V]`` in float32 and ``greedy(tokens_BT, count)``.

    Args:
      folder: in the layout of the Hugging Face hub.
      dtype: of parameters and computation, ``float32`` or ``bfloat16``.
      mesh: over which the parameters are sharded as they are read; by default they go to one device.
      **options: of the kind of model; for language models ``vocabulary``, which may exceed the folder's (new rows of
        the tables start at the mean of the old).

    Raises:
      UsageError: naming the file, key or parameter that is missing, unknown or of the wrong shape.
    """
    folder = Path(folder)
    values = read_config(folder)
    module: nnx.Module = _load(_kind(folder, values), folder, values, dtype, mesh, options)
    return module


def to_hf(
    model: Any,
    config: DecoderConfig,
    folder: str | Path,
    *,
    family: str | None = None,
    dtype: str = "float32",
    vocabulary: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a decoder as a folder that ``transformers`` loads; see ``weights.decoders.export``."""
    from unihetero_jax.weights import decoders

    decoders.export(
        model, config, Path(folder), family=family, dtype=dtype, vocabulary=vocabulary, shard_bytes=shard_bytes
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a published folder.

    Raises:
      UsageError: there is none, or it is no JSON object.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected one with config.json and weights")
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{file}: expected an object with model_type")
    return values


def _kind(folder: Path, values: dict[str, Any]) -> str:
    found = values.get("model_type")
    if found not in HF_FAMILIES:
        raise UsageError(
            f"{folder / 'config.json'}: model_type={found!r}: expected one of {', '.join(sorted(HF_FAMILIES))}"
            f"{nearest(str(found), HF_FAMILIES)}"
        )
    return HF_FAMILIES[found]


def _load(
    kind: str, folder: Path, values: dict[str, Any], dtype: str, mesh: Mesh | None, options: dict[str, Any]
) -> nnx.Module:
    if kind == "decoder":
        from unihetero_jax.weights import decoders

        return decoders.load(folder, values, dtype=dtype, mesh=mesh, **options)
    raise ValueError(f"HF_FAMILIES names a kind without a loader: {kind!r}")
