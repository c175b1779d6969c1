"""The door for weights: finds who reads a Hugging Face folder or a state dict.

A decoder family is found by the ``model_type`` of a folder, which is its kind in ``DECODER_FAMILIES``; a tower by the
``model_types`` of its config section, and its reader by the tower's kind in ``TOWER_WEIGHTS``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.config import DecoderConfig
from unihetero_jax.config.components import DECODER_FAMILIES, HEAD_WEIGHTS, TOWER_WEIGHTS, TOWERS
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.weights.tensors import TensorFiles, parameter_dtype
from unihetero_jax.weights.writer import SHARD_BYTES


def tower_types() -> dict[str, str]:
    """Return the kinds of towers by the ``model_type`` of the folders that hold their weights."""
    return {name: kind for kind, section in TOWERS.sections().items() for name in section.model_types}


def folder_types() -> dict[str, str]:
    """Return ``decoder`` or ``vision`` by each ``model_type`` of a folder that can be read."""
    return {**dict.fromkeys(tower_types(), "vision"), **dict.fromkeys(DECODER_FAMILIES.kinds(), "decoder")}


def from_hf(folder: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None, **options: Any) -> Any:
    """Load a module with the weights of a published folder (``config.json`` and safetensors or torch files).

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
    found = values.get("model_type")
    known = folder_types()
    if found not in known:
        raise UsageError(
            f"{folder / 'config.json'}: model_type={found!r}: expected one of {', '.join(sorted(known))}"
            f"{nearest(str(found), known)}"
        )
    reader = DECODER_FAMILIES.find(found) if known[found] == "decoder" else TOWER_WEIGHTS.find(tower_types()[found])
    module: nnx.Module = reader.load(folder, dtype=dtype, mesh=mesh, **options)
    return module


def from_state_dict(kind: str, arrays: Mapping[str, Any] | TensorFiles, **options: Any) -> Any:
    """Load a module with the weights of a torch state dict, by its published names.

    ``vq16`` (LlamaGen's VQ-16) has ``encode(images_BHWC) -> latent_BHWC, indices_BN`` and ``decode(indices_BN)``;
    ``kl16`` (MAR's KL-16) has ``posterior(images_BHWC) -> mean, logvar`` and ``decode(latent_BHWC)``; images are in
    [−1, 1]. ``diffusion_mlp`` (MAR's head) has ``network(noised, timestep, condition)``.

    Args:
      kind: of a tower whose weights are published like this, or of a head.
      arrays: by torch name; or files, of which one tensor after another is read.
      **options: ``mesh``, over which the parameters are sharded; the others are those of
        ``towers.common.autoencoder.weights.AutoencoderWeights``.

    Raises:
      UsageError: an unknown kind; or, by name, what is missing, left over or has another shape.
    """
    towers = [name for name, section in TOWERS.sections().items() if section.has_state_dict]
    known = [*towers, *HEAD_WEIGHTS.kinds()]
    if kind not in known:
        raise UsageError(
            f"unknown kind of weights {kind!r}: expected one of {', '.join(known)}{nearest(str(kind), known)}"
        )
    reader = (TOWER_WEIGHTS if kind in towers else HEAD_WEIGHTS).find(kind)
    return reader.from_state_dict(arrays, **options)


def to_hf(
    model: Any,
    config: DecoderConfig,
    folder: str | Path,
    *,
    family: str | None = None,
    dtype: str = "float32",
    vocabulary: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write a decoder as a folder that ``transformers`` loads: config.json and safetensors, tensor by tensor.

    ``logit_scale`` has no counterpart there: the head is multiplied by it, and a tied one untied.

    Args:
      model: a ``LanguageModel``, a ``Decoder``, or a decoder's parameters as nested dicts.
      config: the decoder's.
      folder: made here; it may exist when it is empty.
      family: a decoder family such as ``qwen3``; by default the package's own that has what the decoder has.
      dtype: of the tensors, ``float32`` or ``bfloat16``.
      vocabulary: rows of the tables that are ids; needed for bare parameters, whose tables are padded.
      shard_bytes: most bytes of a file.
      beside: content of more files by name, such as a tokenizer.

    Raises:
      UsageError: no family computes what the decoder does, or the folder cannot be written.
    """
    parameter_dtype(dtype)
    chosen = _exporting_family(config, family)
    DECODER_FAMILIES.find(chosen).export(
        model,
        config,
        Path(folder),
        family=chosen,
        dtype=dtype,
        vocabulary=vocabulary,
        shard_bytes=shard_bytes,
        beside=beside or {},
    )


def _exporting_family(config: DecoderConfig, family: str | None) -> str:
    families = {name: DECODER_FAMILIES.find(name) for name in DECODER_FAMILIES.kinds()}
    fitting = [name for name, entry in families.items() if entry.fits(config)]
    # A user's own are asked for by name.
    fitting.sort(key=lambda name: not families[name].__module__.startswith(DECODER_FAMILIES.package))
    decoder = f"a decoder with qkv_bias={config.qkv_bias} and qk_norm={config.qk_norm}"
    if not fitting:
        raise UsageError(f"{decoder} is none of {', '.join(families)}: there is no folder to write it as")
    if family is not None and family not in fitting:
        raise UsageError(f"family={family!r}: {decoder} can be written as {fitting[0]!r}")
    return family or fitting[0]


def read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a published folder.

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
