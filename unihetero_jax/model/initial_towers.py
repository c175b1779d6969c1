"""Weights of one tower, from a published folder or file, an import, or a tower of our own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import TowerConfig
from unihetero_jax.config.components import TOWER_WEIGHTS
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.definition import Params
from unihetero_jax.towers.common import stored as towers
from unihetero_jax.towers.common.vit.config import USE
from unihetero_jax.weights.loading import read_config, tower_types
from unihetero_jax.weights.tensors import TensorFiles

PARAMS = "params"


def start_tower(section: TowerConfig, name: str, path: Path, shapes: Params, shardings: Params, mesh: Mesh) -> Params:
    """Load the parameters of a tower.

    Args:
      section: config of the run's tower.
      name: of the tower, such as ``understanding_tower``.
      path: a Hugging Face folder or an import of one, a file or folder of tensors under their published names
        where the kind has a state dict, or the workdir of ``unihetero towers train``.
      shapes: shape structs of the run's tower, nested dicts.
      shardings: the same structure.
      mesh: the run's device mesh.

    Raises:
      UsageError: the weights are another tower's; names the key or parameter, what was found and what expected.
    """
    where = f"config.init.{name}={path}"
    if not path.exists():
        raise UsageError(f"{where}: no such file or directory")
    if not shapes:
        raise UsageError(f"{where}: config.model.{name}.kind={section.kind!r} has no parameters here")
    if (path / towers.TOWER).is_file():
        _check(where, name, section, towers.read_tower(path), measured=True)
        return towers.load_tower(path, shapes, shardings)[1]
    if section.has_state_dict:
        if path.is_dir() and (path / "config.json").is_file() and "model_type" in read_config(path):
            raise UsageError(f"{where}: holds a {read_config(path)['model_type']!r}, expected {section.kind!r} tensors")
        reader = TOWER_WEIGHTS.find(section.kind)
        with TensorFiles(path) as files:
            module: Any = reader.from_state_dict(files, **reader.options(section), mesh=mesh)
        _check(where, name, section, module.config)
        return _as_stored(module, shapes, shardings)
    values = read_config(path) if path.is_dir() else {}
    imported = (path / PARAMS).is_dir()
    published = values.get("published", {}) if imported else values
    kind = tower_types().get(str(published.get("model_type")))
    if kind is None:
        raise UsageError(
            f"{where}: expected the folder of a {section.kind} model, an import of one, or the workdir of `unihetero "
            "towers train`"
        )
    reader = TOWER_WEIGHTS.find(kind)
    _check(where, name, section, reader.config(published, str(path / "config.json")))
    if imported:
        restored: Params = checkpoint.restore_tree(path / PARAMS, shapes, shardings)
        return restored
    return _as_stored(reader.load(path, mesh=mesh), shapes, shardings)


def _check(where: str, name: str, section: TowerConfig, theirs: Any, *, measured: bool = False) -> None:
    """Refuse weights of another computation, although their shapes might fit.

    ``measured``: their ``latent_scale`` was measured with them; the files of a published autoencoder lack it.
    """
    if theirs.family != section.kind:
        raise UsageError(f"{where}: holds a {theirs.family}; config.model.{name}.kind is {section.kind!r}")
    found, wanted = dataclasses.asdict(section), dataclasses.asdict(theirs)
    # The place where a published tower cuts an image out is no part of its weights.
    skipped = {*USE, "shortest_edge", *(() if measured else ("latent_scale",))}
    skipped |= {entry.name for entry in dataclasses.fields(TowerConfig)} | {"preset", "sample"}
    for field in found:
        if field not in skipped and field in wanted and found[field] != wanted[field]:
            raise UsageError(
                f"{where}: its weights need config.model.{name}.{field}={wanted[field]!r}, not {found[field]!r}"
            )


def _as_stored(module: nnx.Module, shapes: Params, shardings: Params) -> Params:
    """Cast and shard a module's parameters as the run stores them."""
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    cast = jax.jit(
        lambda tree: jax.tree.map(lambda leaf, shape: leaf.astype(jnp.dtype(shape.dtype)), tree, shapes),
        out_shardings=shardings,
    )
    stored: Params = cast(params)
    return stored
