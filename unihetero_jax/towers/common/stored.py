"""Towers of our own, as ``unihetero towers train`` leaves them in its workdir.

``WORKDIR/tower.json`` has ``kind`` and ``config`` of the tower, ``WORKDIR/params`` its parameters (Orbax).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import MeshConfig
from unihetero_jax.config.components import TRAINED_NETWORKS
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.parallel.definition import Params, define_module
from unihetero_jax.parallel.mesh import make_mesh

TOWER = "tower.json"
PARAMS = "params"


def save_tower(workdir: Path, kind: str, config: Any, params: Params) -> None:
    """Writes the parameters, and then what they are: without the second there is no tower.

    Args:
      workdir: of the run.
      kind: of the tower, in ``TRAINED_NETWORKS``.
      config: the tower's.
      params: the tower's alone, nested dicts.
    """
    (workdir / TOWER).unlink(missing_ok=True)
    with ocp.PyTreeCheckpointer() as writer:
        writer.save((workdir / PARAMS).absolute(), params, force=True)
    about = {"kind": kind, "config": dataclasses.asdict(config)}
    write_atomic(workdir / TOWER, json.dumps(about, indent=2, sort_keys=True) + "\n")


def read_tower(workdir: Path) -> Any:
    """The config of the tower in a workdir; its type says which kind it is.

    Raises:
      UsageError: there is no trained tower.
    """
    file = workdir / TOWER
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in about["config"].items()}
        config = TRAINED_NETWORKS.find(about["kind"], f"{file}: kind").config(**values)
    except FileNotFoundError:
        raise UsageError(
            f"{file}: no such file; expected the --workdir of a finished `unihetero towers train`"
        ) from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file}: expected the kind and config of a tower: {error}") from error
    return config


def module_of(config: Any) -> type[Any]:
    """The module that a config is of."""
    network: type[Any] = TRAINED_NETWORKS.find(config.family).network
    return network


def load_tower(workdir: Path, shapes: Params | None = None, shardings: Params | None = None) -> tuple[Any, Params]:
    """The tower that ``unihetero towers train`` left in a workdir.

    Args:
      workdir: the run's directory.
      shapes: of the parameters that are wanted; by default those of the kind's module.
      shardings: the same structure, where they are to land; by default on the first device.

    Returns:
      Its config, of the class that its kind has, and its parameters, nested dicts, as the module of the kind has them.

    Raises:
      UsageError: there is no trained tower, or one of another shape.
    """
    workdir = Path(workdir)
    config = read_tower(workdir)
    alone = shapes is None or shardings is None
    if shapes is None or shardings is None:
        model = define_module(lambda rngs: module_of(config)(config, rngs=rngs))
        shapes, shardings = model.shapes(), model.shardings(make_mesh(MeshConfig(), jax.local_devices()[:1]))
    return config, checkpoint.restore_tree(workdir / PARAMS, shapes, shardings, alone=alone)
