"""Precomputed features instead of frozen towers: whether they match a config, and how to rebuild the towers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import Config, cached_towers, lookup, uncached
from unihetero_jax.data.features import Features
from unihetero_jax.data.records.images import MAX_PIXELS
from unihetero_jax.data.records.manifest import fingerprint, load_manifest
from unihetero_jax.errors import UsageError
from unihetero_jax.model import lora_base as base
from unihetero_jax.model.build import define
from unihetero_jax.model.initial_weights import start_from
from unihetero_jax.parallel.module_definition import Params

log = logging.getLogger(__name__)

# Fields of a tower's section that change no feature.
_IRRELEVANT = ("remat", "training", "capacity", "cached")
# Of folders that do not record it.
_BEFORE = {"data.max_pixels": MAX_PIXELS}


def depends_on(config: Config, name: str) -> dict[str, Any]:
    """Return the config values that a tower's features depend on, by dotted key, as they come back from JSON.

    Args:
      config: a run's configuration; the paths in ``config.init`` are absolute.
      name: of the tower, such as ``understanding_tower``.
    """
    init = config.init
    path = init.path if _from_path(config, name) else ""
    found = {f"init.{name}": getattr(init, name), "init.path": path}
    if not any(found.values()):
        found["train.seed"] = config.train.seed
    section = config.to_dict()["model"][name]
    found |= {f"model.{name}.{key}": value for key, value in section.items() if key not in _IRRELEVANT}
    # Images larger than ``max_pixels`` have no features, and are skipped.
    return found | {
        key: lookup(config, key) for key in ("data.image_size", "data.max_pixels", "optimizer.frozen_dtype")
    }


def open_features(config: Config, root: Path) -> Features | None:
    """Open the features that replace a config's cached towers; None when it has none.

    Args:
      config: the run's configuration; the paths in ``config.init`` are absolute.
      root: directory of the dataset.

    Raises:
      UsageError: the folder cannot be read, or its features are of another dataset or other towers.
    """
    towers = cached_towers(config)
    if not towers:
        return None
    features = Features(Path(config.data.features).expanduser(), list(towers))
    where = f"config.data.features={config.data.features}"
    found = fingerprint(load_manifest(root))
    if found != features.about.dataset:
        raise UsageError(
            f"{where}: made from another dataset (digest {features.about.dataset[:16]}) than config.data.root={root} "
            f"(digest {found[:16]}); expected features of the same records"
        )
    for name in towers:
        made, wanted = {**_BEFORE, **features.about.towers[name].config}, depends_on(config, name)
        for key in dict.fromkeys((*wanted, *made)):
            if wanted.get(key) != made.get(key):
                raise UsageError(f"{where}: made with config.{key}={made.get(key)!r}, not {wanted.get(key)!r}")
    return features


def make_towers(config: Config, names: Sequence[str], vocabulary: int, mesh: Mesh) -> Params:
    """Build the parameters of some towers, as a new run of the config would start with them.

    Args:
      config: the run's configuration.
      names: of the towers.
      vocabulary: number of token ids.
      mesh: that the parameters are sharded over.

    Raises:
      UsageError: as ``initial_weights.start_from``.
    """
    config = uncached(config)
    model = define(config, vocabulary)
    places = {name: model.shardings(mesh)[name] for name in names}
    params: Params = jax.jit(
        lambda: {name: tree for name, tree in base.initial_params(config, model).items() if name in names},
        out_shardings=places,
    )()
    paths = {name: getattr(config.init, name) for name in names}
    path = config.init.path if any(_from_path(config, name) for name in names) else ""
    if not path and not any(paths.values()):
        return params
    init = dataclasses.replace(type(config.init)(), **paths, path=path, parts="towers" if path else "all")
    return start_from(dataclasses.replace(config, init=init), model, params, mesh)


def restore_towers(config: Config, params: Params, vocabulary: int, mesh: Mesh) -> Params:
    """Rebuild the towers that a run had only features of, so that it can encode other images.

    Args:
      config: the run's configuration.
      params: of its checkpoint, which has those of a cached tower that decodes.
      vocabulary: number of token ids.
      mesh: that the parameters are sharded over.

    Raises:
      UsageError: they cannot be built, or the features were not computed by them.
    """
    names = [name for name in cached_towers(config) if name not in params]
    if not names:
        return {}
    made = make_towers(config, names, vocabulary, mesh)
    folder = Path(config.data.features).expanduser()
    if not folder.is_dir():
        log.warning("%s does not exist any more: cannot check that its features are of the towers built here", folder)
        return made
    about = Features(folder, names).about
    for name in names:
        found, wanted = tower_digest(made, name), str(about.towers[name].digest)
        if found != wanted:
            source = getattr(config.init, name) or config.init.path or f"config.train.seed={config.train.seed}"
            raise UsageError(
                f"config.data.features={folder}: made by another {name} (digest {wanted[:16]}) than the one of "
                f"{source} (digest {found[:16]})"
            )
    return made


def tower_digest(params: Mapping[str, Any], name: str) -> str:
    """Return the digest that identifies a tower when it is rebuilt."""
    return base.digest({name: params[name]})


def _from_path(config: Config, name: str) -> bool:
    """Return whether the tower comes from ``init.path``: a run, with no other source given for the tower."""
    init = config.init
    if not init.path or init.parts == "decoder" or getattr(init, name):
        return False
    return (Path(init.path).expanduser() / checkpoint.CHECKPOINTS).is_dir()
