"""Decoder families of the Hugging Face hub: Llama (and Vicuna), Qwen2 (and 2.5), Qwen3; in and out.

Names and config keys are those of ``transformers`` (its ``configuration_*.py`` for the defaults of keys that a
config.json leaves out).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.config import DecoderConfig, resolve
from unihetero_jax.errors import UsageError
from unihetero_jax.model.build import define_language_model
from unihetero_jax.model.language import LanguageModel
from unihetero_jax.parallel.definition import Params
from unihetero_jax.parallel.mesh import evaluation_mesh
from unihetero_jax.weights.fill import Arrays, fill
from unihetero_jax.weights.layouts import HEADS_IN, HEADS_OUT, HEADS_VECTOR, MATRIX, SAME, Rule, Slot, slots
from unihetero_jax.weights.tensors import TensorFiles, parameter_dtype
from unihetero_jax.weights.writer import SHARD_BYTES, Tensor, write_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """What sets a family apart. ``head_width``: when config.json has no head_dim; 0 is width / heads.

    ``refused``: keys that change the computation in a way that our decoder does not know, and the values that do not.
    """

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    head_width: int = 0
    refused: tuple[tuple[str, tuple[Any, ...]], ...] = ()


_COMMON = (("hidden_act", ("silu",)), ("partial_rotary_factor", (None, 1.0)), ("quantization_config", (None,)))

FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM", refused=(*_COMMON, ("attention_bias", (None, False)), ("mlp_bias", (None, False)))
    ),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, refused=(*_COMMON, ("use_sliding_window", (None, False)))),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        qk_norm=True,
        head_width=128,
        refused=(*_COMMON, ("attention_bias", (None, False)), ("use_sliding_window", (None, False))),
    ),
}

# rope_type → our kind of scaling, and by our names the keys that it needs.
_SCALINGS: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("none", {}),
    "linear": ("linear", {"factor": "factor"}),
    "llama3": (
        "llama3",
        {
            "factor": "factor",
            "low_frequency_factor": "low_freq_factor",
            "high_frequency_factor": "high_freq_factor",
            "original_positions": "original_max_position_embeddings",
        },
    ),
}

HEAD = "lm_head.weight"
_EMBEDDING = "embed_tokens.weight"
# Constants that old versions stored.
_BUFFERS = ("rotary_emb.inv_freq", "self_attn.bias", "self_attn.masked_bias")


def rules(config: DecoderConfig) -> list[Rule]:
    """Return the name map of a decoder; theirs without the prefix of the text model."""
    layer = "layers.{}."
    found = [
        Rule(_EMBEDDING, ("embedding",), SAME, vocabulary=0),
        Rule("norm.weight", ("norm", "scale"), SAME),
        Rule(f"{layer}input_layernorm.weight", ("layers", "attention_norm", "scale"), SAME),
        Rule(f"{layer}post_attention_layernorm.weight", ("layers", "mlp_norm", "scale"), SAME),
        Rule(f"{layer}self_attn.o_proj.weight", ("layers", "output", "kernel"), HEADS_IN),
    ]
    for name, ours in (("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down")):
        found.append(Rule(f"{layer}mlp.{name}.weight", ("layers", ours, "kernel"), MATRIX))
    for name, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        found.append(Rule(f"{layer}self_attn.{name}.weight", ("layers", ours, "kernel"), HEADS_OUT))
        if config.qkv_bias:
            found.append(Rule(f"{layer}self_attn.{name}.bias", ("layers", ours, "bias"), HEADS_VECTOR))
    if config.qk_norm:
        found.append(Rule(f"{layer}self_attn.q_norm.weight", ("layers", "query_norm", "scale"), SAME))
        found.append(Rule(f"{layer}self_attn.k_norm.weight", ("layers", "key_norm", "scale"), SAME))
    if not config.tie_embeddings:
        found.append(Rule(HEAD, ("head",), MATRIX, vocabulary=1))
    return found


def read_config(file: Path, values: Mapping[str, Any], dtype: str = "float32") -> tuple[DecoderConfig, int]:
    """Read our config and the vocabulary's size from a published ``config.json``.

    Args:
      file: where the values come from, for messages.
      values: its content.
      dtype: of the computation.

    Raises:
      UsageError: naming the key that is missing, or that asks for what our decoder does not do.
    """
    kind = values.get("model_type")
    family = FAMILIES[str(kind)]
    for key, accepted in family.refused:
        if values.get(key) not in accepted:
            expected = "none" if accepted == (None,) else repr(accepted[-1])
            raise UsageError(f"{file}: {key}={values[key]!r} is not supported for {kind}: expected {expected}")

    def whole(key: str, default: int | None = None) -> int:
        value = values.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise UsageError(f"{file}: {key}={value!r}: expected a positive integer")
        return value

    width, heads = whole("hidden_size"), whole("num_attention_heads")
    decoder = {
        "width": width,
        "layers": whole("num_hidden_layers"),
        "heads": heads,
        "kv_heads": whole("num_key_value_heads", heads),
        "head_width": whole("head_dim", family.head_width),
        "mlp_width": whole("intermediate_size"),
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
        **_rope(file, values),
        "norm_epsilon": float(values.get("rms_norm_eps", 1e-6)),
        "tie_embeddings": bool(values.get("tie_word_embeddings", False)),
        "embedding_scale": float(values.get("initializer_range", 0.02)),
        "logit_scale": 1.0,
        "dtype": dtype,
    }
    try:
        return resolve({"model": {"decoder": decoder}}).model.decoder, whole("vocab_size")
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _rope(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Read rotary positions from ``rope_parameters`` (transformers 5), else ``rope_scaling`` and the top level."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise UsageError(f"{file}: rope_parameters={rope!r}: expected an object with rope_theta")
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind not in _SCALINGS:
        raise UsageError(f"{file}: rope_type={kind!r} is not supported: expected one of {', '.join(_SCALINGS)}")

    def positive(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UsageError(f"{file}: {key}={value!r}: expected a number above 0")
        return float(value)

    ours, keys = _SCALINGS[kind]
    scaling: dict[str, Any] = {name: positive(key, rope.get(key)) for name, key in keys.items()}
    if "original_positions" in scaling:
        scaling["original_positions"] = int(scaling["original_positions"])
    theta = positive("rope_theta", rope.get("rope_theta", values.get("rope_theta", 10_000.0)))
    return {"rope_theta": theta, "rope_scaling": {"kind": ours, **scaling}}


def _their_rope(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys of a ``config.json`` that define what ``_rope`` reads."""
    scaling = config.rope_scaling
    kind, keys = next((kind, keys) for kind, (ours, keys) in _SCALINGS.items() if ours == scaling.kind)
    values = {"rope_type": kind, **{key: getattr(scaling, name) for name, key in keys.items()}}
    # Both places: transformers 5 reads the second, what came before it the first.
    theirs: dict[str, Any] = {"rope_theta": config.rope_theta}
    if keys:
        theirs["rope_scaling"] = values
    if "original_positions" in keys:
        theirs["max_position_embeddings"] = int(scaling.original_positions * scaling.factor)
    return {**theirs, "rope_parameters": {**values, "rope_theta": config.rope_theta}}


def renaming(files: TensorFiles, tied: bool) -> Callable[[str], str | None]:
    """Map their names to those without the prefix of the text model; None for what is left out.

    The prefix (``model.``, ``language_model.model.``, ``model.language_model.``, …) is what stands before the embedding
    table. In a multimodal folder, what lies elsewhere is not the decoder's, and is left.

    Raises:
      UsageError: there is no embedding table, or there are several.
    """
    tables = [name for name in files.names if name == _EMBEDDING or name.endswith(f".{_EMBEDDING}")]
    if len(tables) != 1:
        found = ", ".join(tables) or "none"
        raise UsageError(f"{files.path}: expected one tensor that ends in {_EMBEDDING}, found {found}")
    prefix = tables[0].removesuffix(_EMBEDDING)
    heads = {HEAD, f"{prefix.removesuffix('model.')}{HEAD}"}
    multimodal = "language_model" in prefix

    def rename(name: str) -> str | None:
        if name in heads:
            return None if tied else HEAD
        if name.startswith(prefix):
            return None if name.endswith(_BUFFERS) else name.removeprefix(prefix)
        return None if multimodal else name

    if others := [name for name in files.names if multimodal and rename(name) is None and name not in heads]:
        log.info("%s: left %d tensors that are not the decoder's: %s", files.path, len(others), ", ".join(others))
    return rename


def load(
    folder: Path, values: Mapping[str, Any], *, dtype: str, mesh: Mesh | None, vocabulary: int | None = None
) -> LanguageModel:
    """Load a published decoder; see ``registry.from_hf``.

    Raises:
      UsageError: as there; or ``vocabulary`` is below the folder's.
    """
    held = parameter_dtype(dtype)
    config, theirs = read_config(folder / "config.json", values, dtype)
    if vocabulary is not None and vocabulary < theirs:
        raise UsageError(f"vocabulary={vocabulary}: expected {theirs} (the folder's) or more")
    definition = define_language_model(config, vocabulary or theirs)
    shapes = definition.shapes()["decoder"]
    shardings = definition.shardings(mesh or evaluation_mesh(1))["decoder"]
    arrays = Arrays(shapes, shardings, held)
    with TensorFiles(folder) as files:
        fill(files, slots(rules(config), shapes), renaming(files, config.tie_embeddings), arrays)
    return definition.bind({"decoder": arrays.tree()})


def export(
    model: Any,
    config: DecoderConfig,
    folder: Path,
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
      family: ``llama``, ``qwen2`` or ``qwen3``; by default the one that has what the decoder has.
      dtype: of the tensors, ``float32`` or ``bfloat16``.
      vocabulary: rows of the tables that are ids; needed for bare parameters, whose tables are padded.
      shard_bytes: most bytes of a file.
      beside: content of more files by name, such as a tokenizer.

    Raises:
      UsageError: no family computes what the decoder does, or the folder cannot be written.
    """
    held = parameter_dtype(dtype)
    decoder = getattr(model, "decoder", model)
    params: Params = decoder if isinstance(decoder, dict) else nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
    rows = vocabulary or getattr(decoder, "vocabulary", None) or params["embedding"].shape[0]
    family = _family(config, family)
    untied = not config.tie_embeddings or config.logit_scale != 1
    tensors = [
        Tensor(_published(name), _their_shape(slot, rows), held, _reader(params, slot, rows, config, held))
        for name, slot in slots(rules(config), params).items()
    ]
    if untied and config.tie_embeddings:
        head = Slot(("embedding",), None, params["embedding"].shape, Rule(HEAD, ("embedding",), SAME, vocabulary=0))
        tensors.append(Tensor(HEAD, _their_shape(head, rows), held, _reader(params, head, rows, config, held)))
    values = {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_epsilon,
        **_their_rope(config),
        "initializer_range": config.embedding_scale,
        "tie_word_embeddings": not untied,
        "vocab_size": rows,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    write_folder(folder, tensors, {**(beside or {}), "config.json": text}, shard_bytes)


def _family(config: DecoderConfig, family: str | None) -> str:
    has = (config.qkv_bias, config.qk_norm)
    fitting = [name for name, entry in FAMILIES.items() if (entry.qkv_bias, entry.qk_norm) == has]
    decoder = f"a decoder with qkv_bias={has[0]} and qk_norm={has[1]}"
    if not fitting:
        raise UsageError(f"{decoder} is none of {', '.join(FAMILIES)}: there is no folder to write it as")
    if family is not None and family not in fitting:
        raise UsageError(f"family={family!r}: {decoder} can be written as {fitting[0]!r}")
    return fitting[0]


def _published(name: str) -> str:
    return name if name == HEAD else f"model.{name}"


def _their_shape(slot: Slot, rows: int) -> tuple[int, ...]:
    shape = slot.rule.layout.shape(slot.shape)
    return shape if slot.rule.vocabulary is None else (rows, *shape[1:])


def _reader(params: Params, slot: Slot, rows: int, config: DecoderConfig, dtype: np.dtype) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        value: Any = params
        for name in slot.path:
            value = value[name]
        array = np.asarray(jax.device_get(value if slot.layer is None else value[slot.layer]))
        theirs = slot.rule.layout.to_theirs(array)
        if slot.rule.vocabulary is not None:
            theirs = theirs[:rows]
        if slot.rule.theirs == HEAD and config.logit_scale != 1:
            theirs = theirs.astype(np.float32) * np.float32(config.logit_scale)
        return theirs.astype(dtype, copy=False)

    return read
