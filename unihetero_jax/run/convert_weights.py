"""Import of published weights, export of a run's decoder, and a listing of either."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import leaves
from unihetero_jax.config.components import DECODER_FAMILIES, TOWERS
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.startup import set_up_logging
from unihetero_jax.run.load import load_trained
from unihetero_jax.tokenizer.tokenizer_json import JsonTokenizer
from unihetero_jax.towers.common.vit import weights as vision
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.weights.loading import folder_types, from_hf, read_config, to_hf
from unihetero_jax.weights.tensors import TensorFiles
from unihetero_jax.weights.writer import new_folder

PARAMS = "params"
CONFIG = "config.json"
# Files of a tokenizer in published folders; they are copied as they are.
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
# Keys of our sections that describe a run and not its weights.
_RUN_KEYS = ("dropout", "attention", "remat", "dtype", "param_dtype", "layer", "class_token")


def import_weights(folder: Path, out: Path, dtype: str = "float32") -> None:
    """Write ``out/params`` (Orbax), ``out/config.json`` and the folder's tokenizer.

    ``config.json``: ``kind`` of module, ``dtype``, ``source``, and ``published``, the folder's own.

    Raises:
      UsageError: the folder cannot be imported, or ``out`` holds something.
    """
    set_up_logging()
    values = read_config(folder)
    with new_folder(out) as part:
        module = from_hf(folder, dtype=dtype)
        params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        with ocp.PyTreeCheckpointer() as writer:
            writer.save((part / PARAMS).absolute(), params)
        about = {
            "kind": folder_types()[values["model_type"]],
            "dtype": dtype,
            "source": folder.resolve().name,
            "published": values,
        }
        (part / CONFIG).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tokenizer = _tokenizer(folder)
        for name, content in tokenizer.items():
            (part / name).write_bytes(content)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{out}: {values['model_type']}, {count:,} parameters in {dtype}; {_named('tokenizer', tokenizer)}")


def export_weights(
    workdir: Path, out: Path, step: int | None = None, family: str | None = None, dtype: str = "float32"
) -> None:
    """Write the decoder of a run's checkpoint as a folder that ``transformers`` loads, and its tokenizer.

    Raises:
      UsageError: no such run or checkpoint, no family fits, or ``out`` holds something.
    """
    set_up_logging()
    trained = load_trained(workdir, step)
    tokenizer = _tokenizer(workdir)
    to_hf(
        trained.params["decoder"],
        trained.config.model.decoder,
        out,
        family=family,
        dtype=dtype,
        vocabulary=trained.tokenizer.vocabulary_size,
        beside=tokenizer,
    )
    left = [name for name in trained.params if name != "decoder"]
    print(f"{out}: the decoder of step {trained.step}; {_named('tokenizer', tokenizer)}; {_named('left', left)}")


def inspect_weights(path: Path) -> None:
    """Print the tensors of a published folder, an import or a file; of a folder, how a run starts from it.

    Raises:
      UsageError: there is none of them, or it cannot be read.
    """
    set_up_logging()
    if (path / PARAMS).is_dir():
        found = checkpoint.stored_shapes(path / PARAMS)
        values = read_config(path).get("published", {})
    else:
        with TensorFiles(path) as files:
            found = [(name, stored.shape, stored.kind) for name, stored in files.names.items()]
        values = read_config(path) if (path / CONFIG).is_file() else {}
    width = max((len(name) for name, _, _ in found), default=0)
    for name, shape, kind in found:
        print(f"{name:{width}}  {kind:8}  {list(shape)}")
    print(f"{sum(math.prod(shape) for _, shape, _ in found):,} parameters in {len(found)} tensors")
    model_type, types = values.get("model_type"), folder_types()
    if model_type is None:
        print("family: unknown (no config.json)")
    elif model_type in types:
        print(f"family: {model_type} ({types[model_type]})")
    else:
        print(f"family: {model_type}, which cannot be imported; expected one of {', '.join(sorted(types))}")
    tokenizer = _tokenizer(path) if path.is_dir() else {}
    print(_named("tokenizer", tokenizer))
    if model_type in types:
        try:
            lines = start_lines(path, values, bool(tokenizer.keys() & {JsonTokenizer.FILE, checkpoint.TOKENIZER}))
        except UsageError as error:
            print(f"a run cannot start from it: {error}")
            return
        print("a run starts from it with these lines in get_config():")
        for line in lines:
            print(f"    {line}")


def start_lines(path: Path, values: Mapping[str, Any], tokenizer: bool) -> list[str]:
    """Lines of a config file with which a run starts from a published folder, or from an import of it.

    A vision tower is used on the understanding side; the generation side has the same keys.

    Args:
      path: the folder.
      values: its (published) config.json.
      tokenizer: whether the folder has one that a run can use.

    Raises:
      UsageError: a model that ours cannot be.
    """
    where, settings = str(path.absolute()), dict[str, Any]()
    model_type = values["model_type"]
    if DECODER_FAMILIES.is_kind(model_type):
        decoder, _ = DECODER_FAMILIES.find(model_type).config(path / CONFIG, values)
        settings["init.path"] = where
        if tokenizer:
            settings["init.tokenizer"] = True
        for key, _, value in leaves(decoder):
            scaled = not key.startswith("rope_scaling.") or decoder.rope_scaling.kind != "none"
            if key not in _RUN_KEYS and scaled:
                settings[f"model.decoder.{key}"] = value
    else:
        tower, side = vision.folder_config(path, values), "understanding_tower"
        settings[f"init.{side}"] = where
        settings[f"model.{side}.kind"] = tower.family
        sizes = {entry.name for entry in dataclasses.fields(ViTConfig)}.difference(_RUN_KEYS)
        section = TOWERS.config(tower.family)
        known = {name: section(**values) for name, values in section.presets.items()}
        preset = next((name for name, made in known.items() if _same(made, tower, sizes)), None)
        if preset is None:
            settings |= {f"model.{side}.{name}": getattr(tower, name) for name in sorted(sizes)}
        else:
            settings[f"model.{side}.preset"] = preset
    return [
        f"config.{key} = {json.dumps(value) if isinstance(value, str) else value}" for key, value in settings.items()
    ]


def _same(one: ViTConfig, other: ViTConfig, names: set[str]) -> bool:
    # Without input_size it is the size of the position table; the resulting ``side`` is compared.
    compared = {"side", *names} - {"input_size"}
    return all(getattr(one, name) == getattr(other, name) for name in compared)


def _tokenizer(folder: Path) -> dict[str, bytes]:
    return {name: _read(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error


def _named(what: str, names: Iterable[Any]) -> str:
    return f"{what}: {', '.join(names) or 'none'}"
