"""The door for weights: which loader reads which ``model_type`` of a Hugging Face folder.

A loader is imported when it is needed. To add a family: its model types here, and its loader in ``_load``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.config import DecoderConfig
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.weights.tensors import TensorFiles, parameter_dtype
from unihetero_jax.weights.writer import SHARD_BYTES

# model_type of a config.json → the kind of module that it becomes.
HF_FAMILIES: dict[str, str] = {
    "llama": "decoder",
    "qwen2": "decoder",
    "qwen3": "decoder",
    "dinov2": "vision",
    "dinov2_with_registers": "vision",
    "siglip": "vision",
    "siglip_vision_model": "vision",
    "clip": "vision",
    "clip_vision_model": "vision",
}

STATE_DICT_KINDS = ("vq16", "kl16", "diffusion_mlp")


def from_hf(folder: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None, **options: Any) -> Any:
    """A module with the weights of a published folder (``config.json`` and safetensors or torch files).

    A language model has ``logits(tokens_BT) -> [B, T, V]`` in float32 and ``greedy(tokens_BT, count)``. A vision tower
    has ``hidden_states(pixels_BHWC, layer) -> [B, S, D]`` on pixels already normalized: −1 the published last hidden
    state, −2 the block before the last.

    Args:
      folder: in the layout of the Hugging Face hub.
      dtype: of parameters and computation, ``float32`` or ``bfloat16``.
      mesh: over which the parameters are sharded as they are read; by default they go to one device.
      **options: of the kind of model; for language models ``vocabulary``, which may exceed the folder's (new rows of
        the tables start at the mean of the old), for vision towers fields of ``ViTConfig`` for their use, such
        as ``layer`` or ``image_size``.

    Raises:
      UsageError: naming the file, key or parameter that is missing, unknown or of the wrong shape.
    """
    parameter_dtype(dtype)
    folder = Path(folder)
    values = read_config(folder)
    module: nnx.Module = _load(_kind(folder, values), folder, values, dtype, mesh, options)
    return module


def from_state_dict(kind: str, arrays: Mapping[str, Any] | TensorFiles, **options: Any) -> Any:
    """A module with the weights of a torch state dict, by its published names.

    ``vq16`` (LlamaGen's VQ-16) has ``encode(images_BHWC) -> latent_BHWC, indices_BN`` and ``decode(indices_BN)``;
    ``kl16`` (MAR's KL-16) has ``posterior(images_BHWC) -> mean, logvar`` and ``decode(latent_BHWC)``; images are in
    [−1, 1]. ``diffusion_mlp`` (MAR's head) has ``network(noised, timestep, condition)``.

    Args:
      kind: one of ``STATE_DICT_KINDS``.
      arrays: by torch name; or files, of which one tensor after another is read.
      **options: ``mesh``, over which the parameters are sharded; the others are those of
        ``towers.common.autoencoder.weights.from_state_dict``.

    Raises:
      UsageError: an unknown kind; or, by name, what is missing, left over or has another shape.
    """
    if kind not in STATE_DICT_KINDS:
        raise UsageError(
            f"unknown kind of weights {kind!r}: expected one of {', '.join(STATE_DICT_KINDS)}"
            f"{nearest(kind, STATE_DICT_KINDS)}"
        )
    if kind == "diffusion_mlp":
        from unihetero_jax.model.diffusion import weights as diffusion

        return diffusion.from_state_dict(arrays, **options)
    from unihetero_jax.towers.common.autoencoder import weights as autoencoders

    return autoencoders.from_state_dict(kind, arrays, **options)


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
    """Writes a decoder as a folder that ``transformers`` loads; see ``model.families.hugging_face.export``."""
    from unihetero_jax.model.families import hugging_face as decoders

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
        from unihetero_jax.model.families import hugging_face as decoders

        return decoders.load(folder, values, dtype=dtype, mesh=mesh, **options)
    if kind == "vision":
        from unihetero_jax.towers.common.vit import weights as vision

        return vision.load(folder, dtype=dtype, mesh=mesh, **options)
    raise ValueError(f"HF_FAMILIES names a kind without a loader: {kind!r}")
