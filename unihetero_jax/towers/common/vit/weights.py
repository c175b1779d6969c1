"""Vision transformers from Hugging Face folders.

Tensors are asked for by name, one parameter of ours at a time, through a reader. A text tower beside the vision tower,
and what only serves pooled outputs or masked training, is left where it is, and listed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from unihetero_jax.config.components import TOWER_WEIGHTS, TOWERS
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.mesh import RULES, place
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.network import VisionTransformer
from unihetero_jax.weights.loading import tower_types
from unihetero_jax.weights.tensors import TensorFiles, parameter_dtype


def make_vit(config: ViTConfig, rngs: nnx.Rngs) -> VisionTransformer:
    """The vision transformer of a config, with random parameters."""
    tower: VisionTransformer = TOWERS.find(config.family)(config, rngs=rngs)
    return tower


Reader = Callable[[str], np.ndarray]
Convert = Callable[[np.ndarray], np.ndarray]


class Source(NamedTuple):
    """Where a parameter comes from: a tensor's name, ``{}`` for the number of the layer, and how it is turned."""

    name: str
    convert: Convert


class Imported(NamedTuple):
    """A tower, and the tensors of the file that it has no use for."""

    tower: VisionTransformer
    unused: tuple[str, ...]


# Fields of ViTConfig that a user may set beside a published architecture.
USE = ("input_size", "shortest_edge", "layer", "class_token", "remat")


class ViTWeights:
    """How one publisher stores its towers; a subclass is registered in ``TOWER_WEIGHTS`` under the tower's kind.

    Attributes:
      defaults: what ``transformers`` takes where config.json is silent; files of whole models leave out most.
      whole_models: each ``model_type`` of a model with a text tower, whose ``vision_config`` counts.
      unread: tensors of a vision tower that no hidden state depends on, by the start of their names.
    """

    defaults: ClassVar[Mapping[str, Any]]
    whole_models: ClassVar[tuple[str, ...]] = ()
    unread: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def variant(cls, model_type: str) -> dict[str, Any]:
        """Return values of config.json that a ``model_type`` implies, with ``antialias_positions`` of ``ViTConfig``."""
        del model_type
        return {}

    @staticmethod
    def sources(config: ViTConfig) -> dict[str, Source]:
        """Return where each parameter comes from, by its dotted path in the tower."""
        raise NotImplementedError

    @staticmethod
    def config(values: Mapping[str, Any], where: str) -> ViTConfig:
        """Read the architecture that a ``config.json`` describes; see ``vit_config``."""
        return vit_config(values, where)

    @staticmethod
    def load(folder: Path, *, dtype: str = "float32", mesh: Mesh | None = None, **use: Any) -> VisionTransformer:
        """Load the vision tower of a Hugging Face folder; see the function ``load``."""
        return load(folder, dtype=dtype, mesh=mesh, **use)


def vit_config(values: Mapping[str, Any], where: str) -> ViTConfig:
    """The architecture that a ``config.json`` describes.

    Args:
      values: the file's content; of a whole SigLIP or CLIP model, its ``vision_config`` counts.
      where: the file, for errors.

    Raises:
      UsageError: a model that is none of these, or an architecture that the towers do not have.
    """
    model_type, kinds = str(values.get("model_type", "")), tower_types()
    if model_type not in kinds:
        raise UsageError(f"{where}: model_type={values.get('model_type')!r}; expected one of {', '.join(kinds)}")
    kind = kinds[model_type]
    family: type[ViTWeights] = TOWER_WEIGHTS.find(kind)
    given = values.get("vision_config", {}) if model_type in family.whole_models else values
    read = {**family.defaults, **family.variant(model_type), **given}
    for key, expected in {
        "hidden_act": family.defaults["hidden_act"],
        "num_channels": 3,
        "qkv_bias": True,
    }.items():
        if read.get(key, expected) != expected:
            raise UsageError(f"{where}: {key}={read[key]!r}; {kind} towers are made with {expected!r}")
    swiglu = bool(read.get("use_swiglu_ffn", False))
    mlp_width = read.get("intermediate_size") or int(read["hidden_size"] * read["mlp_ratio"])
    if swiglu:
        mlp_width = (int(mlp_width * 2 / 3) + 7) // 8 * 8
    section: type[ViTConfig] = TOWERS.config(kind)
    return section(
        width=read["hidden_size"],
        layers=read["num_hidden_layers"],
        heads=read["num_attention_heads"],
        mlp_width=mlp_width,
        patch_size=read["patch_size"],
        image_size=read["image_size"],
        registers=read.get("num_register_tokens", 0),
        swiglu=swiglu,
        antialias_positions=read.get("antialias_positions", False),
        norm_epsilon=read["layer_norm_eps"],
    )


def with_processing(config: ViTConfig, values: Mapping[str, Any], where: str) -> ViTConfig:
    """The same tower on images as large, and cut, as a ``preprocessor_config.json`` says.

    Raises:
      UsageError: a resampling or a normalization other than the family's.
    """
    mean, std = config.pixel_mean, config.pixel_std
    expectations: dict[str, list[float]] = {"resample": [3], "image_mean": [*mean], "image_std": [*std]}
    for key, expected in expectations.items():
        if not np.array_equal(np.round(np.ravel(values.get(key, expected)), 6), np.round(expected, 6)):
            raise UsageError(f"{where}: {key}={values[key]}; {config.family} towers work with {expected}")
    size, crop = values.get("size", {}), values.get("crop_size", {})
    # Files of older versions have one number instead of a dictionary: of the shorter side, where a crop follows.
    shorter = size if isinstance(size, int) else size.get("shortest_edge", 0)
    square = crop if isinstance(crop, int) else crop.get("height", 0)
    if not values.get("do_center_crop", bool(square)) or not square:
        square = shorter if isinstance(size, int) else size.get("height", 0)
        shorter = 0
    return dataclasses.replace(config, input_size=square, shortest_edge=shorter)


def folder_config(folder: Path, values: Mapping[str, Any]) -> ViTConfig:
    """The tower of a folder with this ``config.json``, on images as its ``preprocessor_config.json`` (if any) says.

    Raises:
      UsageError: as ``vit_config`` and ``with_processing``.
    """
    config = vit_config(values, str(folder / "config.json"))
    where = folder / "preprocessor_config.json"
    return with_processing(config, _json(where), str(where)) if where.exists() else config


def same(array: np.ndarray) -> np.ndarray:
    """Return the tensor as it is."""
    return array


def transposed(array: np.ndarray) -> np.ndarray:
    """Return [in, out] of [out, in]."""
    return array.T


def dense(ours: str, theirs: str, kernel: Convert = transposed, bias: Convert = same) -> dict[str, Source]:
    """Return the sources of a linear layer."""
    return {f"{ours}.kernel": Source(f"{theirs}.weight", kernel), f"{ours}.bias": Source(f"{theirs}.bias", bias)}


def norm(ours: str, theirs: str) -> dict[str, Source]:
    """Return the sources of a layer norm."""
    return {f"{ours}.scale": Source(f"{theirs}.weight", same), f"{ours}.bias": Source(f"{theirs}.bias", same)}


def rows(config: ViTConfig, theirs: str) -> Source:
    """Return the source of a table of tokens, [N, D] of any shape that ends in D."""
    return Source(theirs, lambda array: array.reshape(-1, config.width))


def patch(config: ViTConfig, theirs: str) -> dict[str, Source]:
    """Return the sources of the map of patches, [pixels, D] of a convolution's [D, 3, side, side]."""
    return dense("patch", theirs, lambda array: array.transpose(2, 3, 1, 0).reshape(-1, config.width))


def attention(config: ViTConfig, inputs: Sequence[str], output: str) -> dict[str, Source]:
    """Return the sources of a block's attention, with the heads as an axis of their own.

    Args:
      config: the tower's.
      inputs: their names of query, key and value.
      output: their name of the output.
    """
    heads, head = config.heads, config.width // config.heads
    sources: dict[str, Source] = {}
    for ours, theirs in zip(("query", "key", "value"), inputs, strict=True):
        sources |= dense(
            f"layers.{ours}",
            theirs,
            lambda w: w.T.reshape(config.width, heads, head),
            lambda b: b.reshape(heads, head),
        )
    return sources | dense("layers.output", output, lambda w: w.T.reshape(heads, head, config.width))


def clip_sources(config: ViTConfig) -> dict[str, Source]:
    """Return the sources of blocks, patches and positions, as CLIP and SigLIP name them."""
    layer = "encoder.layers.{}"
    inputs = [f"{layer}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    return {
        **attention(config, inputs, f"{layer}.self_attn.out_proj"),
        **norm("layers.attention_norm", f"{layer}.layer_norm1"),
        **norm("layers.mlp_norm", f"{layer}.layer_norm2"),
        **dense("layers.up", f"{layer}.mlp.fc1"),
        **dense("layers.down", f"{layer}.mlp.fc2"),
        **patch(config, "embeddings.patch_embedding"),
        "positions": rows(config, "embeddings.position_embedding.weight"),
    }


def _prefix(names: Collection[str], probe: str, where: str) -> str:
    found = sorted(name for name in names if name == probe or name.endswith(f".{probe}"))
    if len(found) != 1:
        what = "no tensor" if not found else f"{len(found)} tensors ({', '.join(found)})"
        raise UsageError(f"{where}: {what} called {probe}; expected one vision tower")
    return found[0].removesuffix(probe)


def convert(
    config: ViTConfig,
    names: Collection[str],
    read: Reader,
    where: str,
    *,
    mesh: Mesh | None = None,
) -> Imported:
    """Builds a tower from tensors.

    Args:
      config: the architecture; parameters are held in its ``param_dtype``.
      names: every tensor there is.
      read: gives a tensor by name, in torch's layout.
      where: the file or folder, for errors.
      mesh: where parameters land, sharded by their logical axes; without it on the default device.

    Raises:
      UsageError: tensors that are missing, of another shape, or in the tower and unknown; all by name.
    """
    tower = nnx.eval_shape(lambda: make_vit(config, nnx.Rngs(0)))
    graph, state = nnx.split(tower, nnx.Param)
    family: type[ViTWeights] = TOWER_WEIGHTS.find(config.family)
    sources = family.sources(config)
    prefix = _prefix(names, sources["patch.kernel"].name, where)
    wanted = {
        path: [prefix + source.name.format(number) for number in range(config.layers if "{}" in source.name else 1)]
        for path, source in sources.items()
    }
    known = {name for group in wanted.values() for name in group}
    if missing := sorted(known.difference(names)):
        raise UsageError(f"{where}: {len(missing)} tensors missing: {', '.join(missing[:8])}")
    unused = sorted(set(names) - known)
    harmless = tuple(prefix + start for start in family.unread)
    strange = [name for name in unused if name.startswith(prefix) and not name.startswith(harmless)]
    if strange:
        raise UsageError(
            f"{where}: {len(strange)} tensors that a {config.family} tower of {config.layers} layers does not have: "
            f"{', '.join(strange[:8])}"
        )
    filled = []
    for path, variable in nnx.to_flat_state(state):
        dotted = ".".join(str(part) for part in path)
        shape, dtype = variable.get_value().shape, variable.get_value().dtype
        each = shape[1:] if dotted.startswith("layers.") else shape
        parts = [_part(read, name, sources[dotted].convert, each, where).astype(dtype) for name in wanted[dotted]]
        array = np.stack(parts) if dotted.startswith("layers.") else parts[0]
        filled.append((path, variable.replace(_placed(array, variable, mesh))))
    return Imported(nnx.merge(graph, nnx.from_flat_state(filled)), tuple(unused))


def _part(read: Reader, name: str, turn: Convert, shape: tuple[int, ...], where: str) -> np.ndarray:
    tensor = read(name)
    with contextlib.suppress(ValueError):  # a reshape to the config's sizes that cannot be
        turned = turn(tensor)
        if turned.shape == shape:
            return turned
    raise UsageError(f"{where}: {name} has shape {tensor.shape}, which config.json's sizes do not make {shape} of")


def _placed(array: np.ndarray, variable: nnx.Variable, mesh: Mesh | None) -> Any:
    if mesh is None:
        return jnp.asarray(array)
    axes = variable.get_metadata()["axes"]
    axes = ("layers", *axes) if len(axes) < array.ndim else axes
    return place(array, NamedSharding(mesh, RULES.spec(axes, array.shape, mesh)))


def load(folder: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None, **use: Any) -> VisionTransformer:
    """The vision tower of a Hugging Face folder.

    ``config.json`` says what it is, ``preprocessor_config.json`` (when there) what it is shown. Tensors without use for
    the tower, such as a text tower's, are logged.

    Args:
      folder: with ``config.json`` and safetensors, whole or in shards.
      dtype: of parameters, activations and matrix products, ``float32`` or ``bfloat16``.
      mesh: where parameters land, sharded; without it on the default device.
      **use: how the tower is used: any of ``USE``, fields of ``ViTConfig``.

    Raises:
      UsageError: naming the file and what does not fit.
    """
    folder = Path(folder)
    config = folder_config(folder, _json(folder / "config.json"))
    for name in use:
        if name not in USE:
            raise UsageError(f"{folder}: {name} is no option of a vision tower; expected one of {', '.join(USE)}")
    held: Any = parameter_dtype(dtype).name
    config = dataclasses.replace(config, **use, dtype=held, param_dtype=held)
    with TensorFiles(folder) as files:
        made = convert(config, files.names, files.read, str(folder), mesh=mesh)
    if made.unused:
        logging.info("%s: %d tensors not used: %s", folder, len(made.unused), ", ".join(made.unused))
    return made.tower


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; expected the folder of a Hugging Face model") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
