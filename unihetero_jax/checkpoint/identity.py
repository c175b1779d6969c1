"""Whose a checkpoint is: the run, the step and the config that wrote it, and what they learned from.

``WORKDIR/run.json`` names the run and digests what it learns from; the item ``identity`` of each checkpoint repeats
that. A directory that was renamed, or copied from another run, then says so itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unihetero_jax.files import json_object

RUN = "run.json"
ITEM = "identity"


def read_run(workdir: Path) -> dict[str, Any]:
    """The content of a workdir's ``run.json``; empty where there is none.

    Raises:
      UsageError: it cannot be read.
    """
    path = workdir / RUN
    return json_object(path, "the identity of a run") if path.exists() else {}


def of_checkpoint(run: Mapping[str, Any], step: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the item of a checkpoint says; ``run`` is the content of ``run.json``."""
    return {**run, "step": step, "config": digest(config)}


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def mismatch(path: Path) -> str | None:
    """Return why a complete checkpoint is not the one that its place says; None: it is, or it does not say."""
    stored = _item(path, ITEM)
    if not stored:
        return None
    if str(stored.get("step")) != path.name:
        return f"it is a checkpoint of step {stored.get('step')}, renamed or copied"
    run = read_run(path.parent.parent).get("id")
    if run and stored.get("id", run) != run:
        return f"it is a checkpoint of another run ({stored.get('id')}; this is {run})"
    # One that cannot be read is damaged, which the checksums tell.
    if (config := _item(path, "config")) and digest(config) != stored.get("config"):
        return "its config is that of another checkpoint"
    return None


def run_of(path: Path) -> str | None:
    """Return the id of the run that wrote a checkpoint, if it says."""
    return _item(path, ITEM).get("id")


def _item(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((path / name / "metadata").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
