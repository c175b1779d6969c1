"""``config.init``: start a new run from weights of a published folder, an import, or another run.

Weights are sharded like the run's own parameters as they are read.
"""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import TOWER_NAMES, Config, DecoderConfig, cached_towers, lookup, pixel_tower, resolve
from unihetero_jax.config.components import DECODER_FAMILIES
from unihetero_jax.errors import UsageError
from unihetero_jax.model import groups
from unihetero_jax.model.initial_towers import start_tower
from unihetero_jax.model.lora import LORA
from unihetero_jax.parallel.definition import ModelDefinition, Params
from unihetero_jax.weights.fill import Arrays
from unihetero_jax.weights.loading import read_config, tower_types

log = logging.getLogger(__name__)

PARAMS = "params"
# Fields of a decoder's config that no shape depends on, and that change what the same parameters compute.
_COMPUTATION = (
    "heads",
    "kv_heads",
    "rope_theta",
    "rope_scaling.kind",
    "norm_epsilon",
    "logit_scale",
    "qkv_bias",
    "qk_norm",
    "tie_embeddings",
)
# The same for each kind of rope_scaling.
_SCALING = {
    "none": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_frequency_factor", "high_frequency_factor", "original_positions"),
}


def start_from(config: Config, model: ModelDefinition, params: Params, mesh: Mesh) -> Params:
    """Replace parameters by those that ``config.init`` names; log the source of each part.

    Args:
      config: the run's configuration; ``init.path`` is set, or the path of a tower.
      model: its definition.
      params: initial parameters, of all or some parts of the model. What is replaced is removed from here first, so
        that both are never in memory at once.
      mesh: the run's device mesh.

    Raises:
      UsageError: the weights are of another model, naming the key or parameter, what was found and what expected.
    """
    shapes, shardings = model.shapes(), model.shardings(mesh)
    sources: dict[str, Path] = {}
    taken: Params = {}
    if config.init.path:
        path = Path(config.init.path).expanduser()
        taken = _from_path(config, path, params, shapes, shardings)
        sources = dict.fromkeys(taken, path)
    for name in TOWER_NAMES:
        if given := getattr(config.init, name):
            if name not in shapes and name in cached_towers(config):
                continue  # its features stand for it
            if name not in shapes:
                raise UsageError(f"config.init.{name}={given}: this model has no {name} with parameters")
            sources[name] = Path(given).expanduser()
            params.pop(name, None)
            section = pixel_tower(config) if name == "pixel_tower" else getattr(config.model, name)
            taken[name] = start_tower(section, name, sources[name], shapes[name], shardings[name], mesh)
    started = {**params, **taken}
    for name in sorted(started):
        count = sum(leaf.size for leaf in jax.tree.leaves(started[name]))
        log.info(
            "%s: %s parameters %s", name, f"{count:,}", f"from {sources[name]}" if name in taken else "initialized"
        )
    if config.optimizer.frozen_dtype == "float32":
        return started
    places = {name: shardings[name] for name in started}
    return jax.jit(lambda params: groups.as_stored(config, params), out_shardings=places)(started)


def _from_path(config: Config, path: Path, params: Params, shapes: Params, shardings: Params) -> Params:
    """Read what ``init.path`` has; it is removed from ``params``."""
    if (path / checkpoint.CHECKPOINTS).is_dir():
        taken = _from_run(config, path, params, shapes, shardings)
    else:
        values = read_config(path)
        imported = (path / PARAMS).is_dir()
        published = values.get("published", {}) if imported else values
        model_type = published.get("model_type")
        if str(model_type) in tower_types():
            raise UsageError(
                f"config.init.path={path}: a {model_type} tower: expected it as config.init.understanding_tower (or "
                "generation_tower)"
            )
        if not DECODER_FAMILIES.is_kind(str(model_type)):
            raise UsageError(
                f"config.init.path={path}: model_type={model_type!r}: a run can start from "
                f"{', '.join(DECODER_FAMILIES.kinds())}, or another run"
            )
        if config.init.parts == "towers":
            raise UsageError(f"config.init.parts='towers': {path} holds a decoder only")
        family = DECODER_FAMILIES.find(str(model_type))
        decoder, vocabulary = family.config(path / "config.json", published)
        _check_computation(path, decoder, config.model.decoder)
        del params["decoder"]
        if imported:
            taken = {"decoder": _from_import(path, vocabulary, shapes["decoder"], shardings["decoder"])}
        else:
            arrays = Arrays(shapes["decoder"], shardings["decoder"], np.float32)
            taken = {"decoder": family.fill(path, decoder, arrays, shapes["decoder"], cut_vocabulary=True)}
    return taken


def _check_computation(path: Path, theirs: DecoderConfig, ours: DecoderConfig) -> None:
    for name in (*_COMPUTATION, *(f"rope_scaling.{part}" for part in _SCALING[theirs.rope_scaling.kind])):
        found, wanted = lookup(ours, name), lookup(theirs, name)
        if found != wanted:
            raise UsageError(f"config.model.decoder.{name}={found!r}: the weights of {path} need {wanted!r}")


def _from_run(config: Config, workdir: Path, params: Params, shapes: Params, shardings: Params) -> Params:
    step = checkpoint.find_step(workdir, None)
    theirs = resolve(checkpoint.read_json(workdir, step, "config"))
    if theirs.model.lora.rank:
        raise UsageError(
            f"config.init.path={workdir}: a run with LoRA, whose checkpoints hold no base; `unihetero weights export` "
            "writes its decoder with the factors merged, which a run can start from"
        )
    wanted_names = {"all": set(params), "decoder": {"decoder"}, "towers": set(TOWER_NAMES)}[config.init.parts]
    names = [name for name in params if name in wanted_names and name != LORA]
    if "decoder" in names:
        _check_computation(workdir, theirs.model.decoder, config.model.decoder)
    for name in names:
        del params[name]
    wanted, places = ({"params": {name: tree[name] for name in names}} for tree in (shapes, shardings))
    path = workdir / checkpoint.CHECKPOINTS / str(step) / "state"
    restored: Params = checkpoint.restore_tree(path, wanted, places)["params"]
    return restored


def _from_import(path: Path, vocabulary: int, shapes: Params, shardings: Params) -> Params:
    """Read the decoder of an import; its token tables are cut, or padded with their mean, to our rows."""
    stored = {name: shape for name, shape, _ in checkpoint.stored_shapes(path / PARAMS)}
    wanted, places = dict(shapes), dict(shardings)
    tables = {"embedding": 0, "head": 1}
    for name, axis in tables.items():
        found = stored.get(f"decoder.{name}")
        if name in wanted and found is not None and found[axis] != shapes[name].shape[axis]:
            size = shapes[name].shape[1 - axis]
            shape = (found[0], size) if axis == 0 else (size, found[1])
            wanted[name] = jax.ShapeDtypeStruct(shape, shapes[name].dtype)
            places[name] = NamedSharding(shardings[name].mesh, PartitionSpec())
    restored: Params = checkpoint.restore_tree(path / PARAMS, {"decoder": wanted}, {"decoder": places})["decoder"]
    for name, axis in tables.items():
        if name in wanted:
            rows = shapes[name].shape[axis]
            restored[name] = jax.jit(
                lambda table, axis=axis, rows=rows: _resize(table, axis, vocabulary, rows),
                out_shardings=shardings[name],
            )(restored[name])
    return restored


def _resize(table: jax.Array, axis: int, vocabulary: int, rows: int) -> jax.Array:
    known = jax.lax.slice_in_dim(table, 0, min(vocabulary, rows), axis=axis)
    new = rows - known.shape[axis]
    mean = jax.lax.slice_in_dim(table, 0, vocabulary, axis=axis).mean(axis=axis, keepdims=True)
    return jnp.concatenate([known, jnp.repeat(mean, new, axis=axis)], axis=axis) if new else known
