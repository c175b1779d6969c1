"""What a workdir stores about its run: the config, digests of the user's components, the dataset, the tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unihetero_jax.checkpoint import identity
from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import Config, RunConfig, refused_on_resume, resolve, to_json, user_files
from unihetero_jax.config.constraints import A_PATH
from unihetero_jax.config.loading import Keys
from unihetero_jax.config.tree import build as build_section
from unihetero_jax.config.tree import choose, leaves, nested
from unihetero_jax.data.pipeline import find_tokenizer
from unihetero_jax.data.records.manifest import is_complete
from unihetero_jax.data.smart_watch.builder import build
from unihetero_jax.errors import UsageError
from unihetero_jax.files import json_object, write_atomic
from unihetero_jax.parallel import processes
from unihetero_jax.tokenizer.loading import tokenizer_files
from unihetero_jax.tokenizer.tokenizer_json import JsonTokenizer
from unihetero_jax.train.towers import base as tower_config
from unihetero_jax.train.towers.base import TowerRunConfig

log = logging.getLogger(__name__)

# Name and SHA-256 of each of the user's modules (``Config.modules``); the code itself stays where the user has it.
PLUGINS = "plugins.json"


def claim(config: RunConfig, workdir: Path, accept_changed_imports: bool = False) -> None:
    """Write the config into a new workdir; refuse a workdir of another run.

    Args:
      config: the run's configuration.
      workdir: the run's directory; made if it is not there.
      accept_changed_imports: continue with components that have changed since the run began.

    Raises:
      UsageError: the workdir belongs to another config or version, a component has changed, or nothing can be written.
    """
    digests = user_files.digests(config.modules if isinstance(config, Config) else ())
    stored = workdir / checkpoint.CONFIG
    if stored.exists():
        old, new = json_object(stored, "the config of a run"), config.to_dict()
        if old.get("imports", []) == list(_imports(config)):  # else the kinds of its components may be unknown
            _refuse_earlier(old, workdir, config)
        keys = refused_on_resume(old, new, type(config))
        if accept_changed_imports and "imports" in keys:
            keys.remove("imports")
        if keys:
            changes = ", ".join(f"{key} ({_get(old, key)!r} → {_get(new, key)!r})" for key in keys)
            raise UsageError(
                f"{workdir} was started with another config; differing: {changes}. Use another --workdir, or the same "
                "values"
            )
        if (changed := _changed(digests, workdir)) and not accept_changed_imports:
            raise UsageError(
                f"{changed[0]} has changed since {workdir} was started: restore it, use another --workdir, or continue "
                "with it as it is now by --accept_changed_imports"
            )
    if processes.is_first():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if digests:
                write_atomic(workdir / PLUGINS, json.dumps(digests, indent=1) + "\n")
            write_atomic(stored, to_json(config))
        except OSError as error:
            raise UsageError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
    processes.barrier("config")


def refuse_datasets(workdir: Path) -> None:
    """Refuse a dataset's directory as workdir: its tokenizer would be the run's, and checkpoints lie among shards.

    Raises:
      UsageError: it is one.
    """
    if not (workdir / checkpoint.CONFIG).exists() and is_complete(workdir):
        raise UsageError(
            f"--workdir={workdir} is a dataset: expected a directory for the run, and --config.data.root={workdir}"
        )


def identify(workdir: Path, inputs: Mapping[str, str]) -> None:
    """Name a new run in ``run.json``, or compare what a continued one learns from with what it began with.

    Says where another Python or JAX continues it.

    Args:
      workdir: the run's directory.
      inputs: digest of each dataset and of the tokenizer, by what it is called to the user.

    Raises:
      UsageError: naming what is not the same.
    """
    stored = identity.read_run(workdir)
    versions = {"python": platform.python_version(), "jax": importlib.metadata.version("jax")}
    before = stored.get("inputs", {})
    if different := [name for name, digest in inputs.items() if before.get(name, digest) != digest]:
        raise UsageError(
            f"{workdir} was started with another content of {', '.join(different)}: restore it, or use another "
            "--workdir"
        )
    for name, version in versions.items():
        if (old := stored.get("versions", {}).get(name, version)) != version:
            log.warning("%s %s continues a run of %s: last digits may differ", name, version, old)
    newest = next(iter(reversed(checkpoint.steps(workdir))), None)
    kept = None if newest is None else identity.run_of(workdir / checkpoint.CHECKPOINTS / str(newest))
    name = stored.get("id") or kept or uuid.uuid4().hex
    content = {"id": name, "versions": versions, "inputs": {**before, **inputs}}
    write_atomic(workdir / identity.RUN, json.dumps(content, indent=1) + "\n")


def resolve_stored(values: Mapping[str, Any], workdir: Path) -> Config | TowerRunConfig:
    """The config that a workdir stores, of a model or of a tower.

    Warns where a component has changed since the run began.

    Args:
      values: the content of ``config.json``, or the config of a checkpoint.
      workdir: the run's directory.

    Raises:
      UsageError: an earlier version wrote it, a component cannot be imported, or a value is damaged.
    """
    if "kind" in values:
        kind = str(values["kind"])
        _refuse_earlier(values, workdir, tower_config.config_class(kind)())
        return tower_config.resolve(kind, values)
    imports = values.get("imports", ())
    user_files.import_components(imports if isinstance(imports, list) else ())
    _refuse_earlier(values, workdir, Config())
    config = resolve(values)
    if changed := _changed(user_files.digests(config.modules), workdir):
        _warn(f"{', '.join(changed)} changed since {workdir} was started: results may differ")
    return config


def _refuse_earlier(values: Mapping[str, Any], workdir: Path, root: Any) -> None:
    try:
        Keys(choose(root, values)).refuse_unknown(values)
    except UsageError as error:
        key = re.search(r"config(\.[\w-]+)+", str(error))
        raise UsageError(
            f"{workdir} was made by an earlier version of unihetero_jax (its config has {key and key[0]}): expected a "
            "run of this version; start a new one in another --workdir"
        ) from None


def _imports(config: RunConfig) -> tuple[str, ...]:
    return config.imports if isinstance(config, Config) else ()


def _changed(digests: Mapping[str, str], workdir: Path) -> list[str]:
    """The user's modules that are not what they were when the workdir was claimed."""
    path = workdir / PLUGINS
    stored = json_object(path, "digests of config.imports") if path.exists() else {}
    return [name for name, digest in digests.items() if stored.get(name, digest) != digest]


@functools.cache
def _warn(message: str) -> None:
    log.warning(message)


def _get(values: object, key: str) -> object:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def absolute_paths(config: Config) -> Config:
    """The config with absolute paths of data, weights, tools and imports, which later commands read again.

    Those commands may be started in another folder.
    """
    paths = {key: value for key, field, value in leaves(config) if field.bound is A_PATH and value}
    found: dict[str, Any] = {key: str(Path(path).expanduser().absolute()) for key, path in paths.items()}
    absolute: Config = build_section(config, nested(found), "config")
    return dataclasses.replace(absolute, imports=user_files.import_components(config.imports))


def prepare_data(config: Config | TowerRunConfig, root: Path) -> None:
    """Build the config's dataset if it is not there yet.

    Raises:
      UsageError: the directory holds something else.
    """
    if is_complete(root):
        return
    if root.exists() and any(root.iterdir()):
        raise UsageError(
            f"config.data.root={root}: holds files but no complete dataset; expected one, or an empty folder"
        )
    log.info("building the dataset in %s", root)
    build(root, image_size=config.data.image_size, **dataclasses.asdict(config.data.smart_watch))


def copy_tokenizer(config: Config, root: Path, workdir: Path) -> None:
    """Copy the tokenizer of the data, or of the weights that the run starts from, unless the workdir has one."""
    source = find_tokenizer(config, root)
    target = workdir / (JsonTokenizer.FILE if source.suffix == ".json" else checkpoint.TOKENIZER)
    if not target.exists():
        _compare_tokenizers(config, source)
        copy_whole(source, target)


def tokenizer_digests(workdir: Path) -> dict[str, str]:
    """The SHA-256 of a workdir's tokenizer, by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tokenizer_files(workdir)}


def _compare_tokenizers(config: Config, taken: Path) -> None:
    """Warn where a decoder's embeddings were learned with another tokenizer."""
    init = config.init
    if not init.path or init.tokenizer or init.parts == "towers":
        return
    found = next(reversed(tokenizer_files(Path(init.path))), None)
    if found is not None and found.read_bytes() != taken.read_bytes():
        log.warning(
            "config.init.path: %s is another tokenizer than %s, so its ids mean other pieces; "
            "config.init.tokenizer=True takes it",
            found,
            taken,
        )


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the copy is complete or absent."""
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    os.replace(part, target)
