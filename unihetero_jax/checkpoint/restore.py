"""Checkpoints: one Orbax directory per step, ``WORKDIR/checkpoints/STEP/``, written as one unit.

``state``: parameters, optimizer, moving average, step, RNG key data: nested dicts of arrays, nothing from the clock.
``data``: the data state, [B, …] integers. ``config``, ``timers`` and ``identity`` (whose it is): JSON. With LoRA,
``state`` lacks the frozen base, and ``base``, JSON, identifies it (``model.lora_base``). ``checksums.json``: of every
file.
Plain Orbax restores ``state`` anywhere:

    import numpy as np, orbax.checkpoint as ocp
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(path).item_metadata.tree
    numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    state = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=numpy))
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from unihetero_jax.checkpoint import checksums, identity
from unihetero_jax.errors import UsageError

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
ITEMS = ("state", "data", "config", "timers")

log = logging.getLogger(__name__)


class DamagedError(UsageError):
    """The requested checkpoint is damaged."""


def steps(workdir: Path) -> list[int]:
    """Return the steps with a complete checkpoint, ascending."""
    directory = workdir / CHECKPOINTS
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and _is_complete(path))


def _is_complete(path: Path) -> bool:
    return (path / "_CHECKPOINT_METADATA").is_file() and all((path / item).is_dir() for item in ITEMS)


def damage(path: Path, level: str, part: int = 0, parts: int = 1) -> str | None:
    """Return what is wrong with a complete checkpoint: whose it is, or its first damaged file; None: all is well.

    Args:
      path: of the checkpoint.
      level: ``full``, ``sizes`` or ``off``, as for ``checkpoint.verify``.
      part: which share of the files is checked here, from 0.
      parts: number of shares.
    """
    if wrong := identity.mismatch(path):
        return wrong
    if level == "off":
        return None
    try:
        entries = checksums.read(path)
    except (OSError, ValueError) as error:
        return str(error)
    if entries is not None:
        return checksums.damage(path, entries, level == "full", part, parts)
    if problem := _without_checksums(path):
        return problem
    if part == 0:
        log.info("%s: written without checksums; not checked", path)
    return None


def _without_checksums(path: Path) -> str | None:
    """Return what is wrong with a checkpoint without a manifest: its config says whether it had one."""
    config = Path("config", "metadata")
    try:
        values = json.loads((path / config).read_text(encoding="utf-8"))
        written = values["checkpoint"].get("verify", "off") != "off"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{config}: missing or damaged"
    return f"{checksums.MANIFEST}: missing" if written else None


def _verify_level(workdir: Path) -> str:
    """Return ``checkpoint.verify`` of a run's last start."""
    try:
        level = json.loads((workdir / CONFIG).read_text(encoding="utf-8"))["checkpoint"]["verify"]
    except (OSError, ValueError, KeyError, TypeError):
        return "full"
    return level if level in ("sizes", "off") else "full"


def find_step(workdir: Path, step: int | None) -> int:
    """Return the given step, or that of the newest good checkpoint.

    Raises:
      UsageError: there is no such checkpoint; names the existing ones.
      DamagedError: the given one is damaged; names the good ones.
    """
    if not workdir.is_dir():
        raise UsageError(f"{workdir}: no such directory; expected the --workdir of a training run")
    found = steps(workdir)
    if not found:
        raise UsageError(f"{workdir}: no complete checkpoint in {CHECKPOINTS}/; has `unihetero train` saved one yet?")
    level = _verify_level(workdir)

    def wrong(step: int) -> str | None:
        return damage(workdir / CHECKPOINTS / str(step), level)

    if step is not None:
        if step not in found:
            raise UsageError(f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, found))}")
        if problem := wrong(step):
            good = [str(other) for other in found if other != step and not wrong(other)]
            raise DamagedError(
                f"{workdir / CHECKPOINTS / str(step)}: damaged: {problem}; good are: {', '.join(good) or 'none'}"
            )
        return step
    bad: list[str] = []
    for newest in reversed(found):
        problem = wrong(newest)
        if not problem:
            if bad:
                log.warning("%s: damaged: %s; using step %d", workdir / CHECKPOINTS, "; ".join(bad), newest)
            return newest
        bad.append(f"{newest}/{problem}")
    raise UsageError(f"{workdir / CHECKPOINTS}: no good checkpoint: {'; '.join(bad)}")


def _reader(alone: bool = False) -> ocp.Checkpointer:
    """Open a reader for all processes of the job together, or (``alone``) for this process only."""
    mine = jax.process_index()
    processes = ocp.options.MultiprocessingOptions(
        primary_host=mine if alone else 0,
        active_processes={mine} if alone else None,
        barrier_sync_key_prefix=f"alone_{mine}" if alone else None,
    )
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=processes), multiprocessing_options=processes
    )


def restore_tree(path: Path, shapes: Any, shardings: Any, alone: bool = False) -> Any:
    """Restore (a part of) a stored tree with given shardings, whatever mesh wrote it.

    Args:
      path: of the item, such as ``…/STEP/state``.
      shapes: nested dicts of shape structs of what to restore; other parts of the stored tree are not read.
      shardings: the same structure of shardings.
      alone: restore onto this process's own devices, independently of the other processes; so it is as well where all
        shardings are on these devices.

    Raises:
      UsageError: the stored arrays have other names or shapes.
    """
    alone = alone or all(place.is_fully_addressable for place in jax.tree.leaves(shardings))
    wanted = _names_as_stored(shapes)
    arguments = jax.tree.map(
        lambda shape, where: ocp.ArrayRestoreArgs(sharding=where, global_shape=shape.shape, dtype=shape.dtype),
        wanted,
        _names_as_stored(shardings),
    )
    with _reader(alone) as reader:
        _check_shapes(path, wanted, _metadata(reader, path))
        restored = reader.restore(
            path.absolute(),
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
        )
    return _names_as_in(shapes, restored)


def _names_as_stored(tree: Any) -> Any:
    """Convert keys to text: indices of a list of modules are numbers in a tree of parameters, and text on disk."""
    if not isinstance(tree, dict):
        return tree
    return {str(name): _names_as_stored(value) for name, value in tree.items()}


def _names_as_in(like: Any, stored: Any) -> Any:
    if not isinstance(like, dict):
        return stored
    return {name: _names_as_in(value, stored[str(name)]) for name, value in like.items()}


def restore_numpy(path: Path) -> Any:
    """Restore a whole stored tree as NumPy arrays."""
    with _reader() as reader:
        tree = _metadata(reader, path)
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=arguments))


def stored_shapes(path: Path) -> list[tuple[str, tuple[int, ...], str]]:
    """Return the dotted name, shape and type of each array of a stored tree.

    Raises:
      UsageError: there is no readable tree.
    """
    with _reader() as reader:
        tree = _metadata(reader, path)
    return [
        (jax.tree_util.keystr(key, simple=True, separator="."), tuple(leaf.shape), str(leaf.dtype))
        for key, leaf in jax.tree.leaves_with_path(tree)
    ]


def read_json(workdir: Path, step: int, item: str) -> dict[str, Any]:
    """Read the ``config``, ``timers`` or another JSON item of a checkpoint."""
    path = workdir / CHECKPOINTS / str(step) / item / "metadata"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    return values


def _metadata(reader: ocp.Checkpointer, path: Path) -> Any:
    try:
        return reader.metadata(path.absolute()).item_metadata.tree
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{path}: no readable Orbax checkpoint item: {error}") from error


def _check_shapes(path: Path, shapes: Any, stored: Any) -> None:
    found = {jax.tree_util.keystr(key): tuple(leaf.shape) for key, leaf in jax.tree.leaves_with_path(stored)}
    for key, leaf in jax.tree.leaves_with_path(shapes):
        name = jax.tree_util.keystr(key)
        if found.get(name) != tuple(leaf.shape):
            raise UsageError(
                f"{path}: {jax.tree_util.keystr(key, simple=True, separator='.')} is {found.get(name, 'missing')}, "
                f"expected shape {tuple(leaf.shape)}: another model's checkpoint?"
            )
