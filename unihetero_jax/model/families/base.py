"""What the decoder families of the Hugging Face hub have in common; in and out.

A family's kind is the ``model_type`` of its ``config.json``. Names and config keys are those of ``transformers`` (its
``configuration_*.py`` for the defaults of keys that a config.json leaves out).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.config import DecoderConfig, resolve
from unihetero_jax.errors import UsageError
from unihetero_jax.model.build import define_language_model
from unihetero_jax.model.families.common.rope import published_rope, read_rope
from unihetero_jax.model.language import LanguageModel
from unihetero_jax.parallel.definition import Params
from unihetero_jax.parallel.mesh import evaluation_mesh
from unihetero_jax.weights.fill import Arrays, fill
from unihetero_jax.weights.layouts import HEADS_IN, HEADS_OUT, HEADS_VECTOR, MATRIX, SAME, Rule, Slot, slots
from unihetero_jax.weights.loading import read_config
from unihetero_jax.weights.tensors import TensorFiles, parameter_dtype
from unihetero_jax.weights.writer import Tensor, write_folder

log = logging.getLogger(__name__)

HEAD = "lm_head.weight"
_EMBEDDING = "embed_tokens.weight"
# Constants that old versions stored.
_BUFFERS = ("rotary_emb.inv_freq", "self_attn.bias", "self_attn.masked_bias")

# Keys that change the computation in a way that our decoder does not know, and the values that do not.
Refused = tuple[tuple[str, tuple[Any, ...]], ...]
REFUSED: Refused = (
    ("hidden_act", ("silu",)),
    ("partial_rotary_factor", (None, 1.0)),
    ("quantization_config", (None,)),
)


class DecoderFamily:
    """A family whose folders hold a decoder like ours, under Llama's names; a subclass sets what differs.

    Attributes:
      architecture: class of ``transformers`` that reads an exported folder.
      qkv_bias: whether the query, key and value projections have a bias.
      qk_norm: whether queries and keys are normalized.
      head_width: when config.json has no head_dim; 0 is width / heads.
      refused: keys of config.json with the values that our decoder computes, absent (None) or given.
    """

    architecture: ClassVar[str]
    qkv_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False
    head_width: ClassVar[int] = 0
    refused: ClassVar[Refused] = REFUSED

    @classmethod
    def fits(cls, config: DecoderConfig) -> bool:
        """Return whether the family computes what a decoder does."""
        return (config.qkv_bias, config.qk_norm) == (cls.qkv_bias, cls.qk_norm)

    @classmethod
    def rules(cls, config: DecoderConfig) -> list[Rule]:
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

    @classmethod
    def config(cls, file: Path, values: Mapping[str, Any], dtype: str = "float32") -> tuple[DecoderConfig, int]:
        """Read our config and the vocabulary's size from a published ``config.json``.

        Args:
          file: where the values come from, for messages.
          values: its content.
          dtype: of the computation.

        Raises:
          UsageError: naming the key that is missing, or that asks for what our decoder does not do.
        """
        for key, accepted in cls.refused:
            if values.get(key) not in accepted:
                expected = "none" if accepted == (None,) else repr(accepted[-1])
                raise UsageError(
                    f"{file}: {key}={values[key]!r} is not supported for {values.get('model_type')}: expected "
                    f"{expected}"
                )

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
            "head_width": whole("head_dim", cls.head_width),
            "mlp_width": whole("intermediate_size"),
            "qkv_bias": cls.qkv_bias,
            "qk_norm": cls.qk_norm,
            **read_rope(file, values),
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

    @classmethod
    def fill(cls, folder: Path, config: DecoderConfig, arrays: Arrays, shapes: Params, **options: Any) -> Params:
        """Read the tensors of a folder into the parameters of a decoder.

        Args:
          folder: published.
          config: what its config.json says.
          arrays: where they land.
          shapes: shape structs of the decoder's parameters, nested dicts.
          **options: of ``weights.fill.fill``.

        Raises:
          UsageError: tensors that are missing, not used or of another shape.
        """
        with TensorFiles(folder) as files:
            rename = renaming(files, config.tie_embeddings)
            fill(files, slots(cls.rules(config), shapes), rename, arrays, **options)
        return arrays.tree()

    @classmethod
    def load(
        cls, folder: Path, *, dtype: str, mesh: Mesh | None = None, vocabulary: int | None = None
    ) -> LanguageModel:
        """Load a published decoder; see ``weights.from_hf``.

        Raises:
          UsageError: as there; or ``vocabulary`` is below the folder's.
        """
        held = parameter_dtype(dtype)
        config, theirs = cls.config(folder / "config.json", read_config(folder), dtype)
        if vocabulary is not None and vocabulary < theirs:
            raise UsageError(f"vocabulary={vocabulary}: expected {theirs} (the folder's) or more")
        definition = define_language_model(config, vocabulary or theirs)
        shapes = definition.shapes()["decoder"]
        arrays = Arrays(shapes, definition.shardings(mesh or evaluation_mesh(1))["decoder"], held)
        return definition.bind({"decoder": cls.fill(folder, config, arrays, shapes)})

    @classmethod
    def export(
        cls,
        model: Any,
        config: DecoderConfig,
        folder: Path,
        *,
        family: str,
        dtype: str,
        vocabulary: int | None,
        shard_bytes: int,
        beside: Mapping[str, bytes],
    ) -> None:
        """Write a decoder as a folder that ``transformers`` loads; see ``weights.to_hf``.

        Raises:
          UsageError: the folder cannot be written.
        """
        held = parameter_dtype(dtype)
        decoder = getattr(model, "decoder", model)
        params: Params = decoder if isinstance(decoder, dict) else nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
        rows = vocabulary or getattr(decoder, "vocabulary", None) or params["embedding"].shape[0]
        untied = not config.tie_embeddings or config.logit_scale != 1
        tensors = [
            Tensor(_published(name), _their_shape(slot, rows), held, _reader(params, slot, rows, config, held))
            for name, slot in slots(cls.rules(config), params).items()
        ]
        if untied and config.tie_embeddings:
            head = Slot(("embedding",), None, params["embedding"].shape, Rule(HEAD, ("embedding",), SAME, vocabulary=0))
            tensors.append(Tensor(HEAD, _their_shape(head, rows), held, _reader(params, head, rows, config, held)))
        values = {
            "architectures": [cls.architecture],
            "model_type": family,
            **_published_config(config),
            "tie_word_embeddings": not untied,
            "vocab_size": rows,
            "dtype": dtype,
            "torch_dtype": dtype,
        }
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        write_folder(folder, tensors, {**beside, "config.json": text}, shard_bytes)


def _published_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_epsilon,
        **published_rope(config),
        "initializer_range": config.embedding_scale,
    }


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
