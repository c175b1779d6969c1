"""What the hosts of a run have to have in common, and what the first one says about all of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

import unihetero_jax
from unihetero_jax.config import RunConfig, user_files
from unihetero_jax.parallel import processes
from unihetero_jax.train.monitor.host_log import HostLog

log = logging.getLogger(__name__)

# Machines may be unlike each other in these, which change nothing that a model sees.
_OF_A_MACHINE = ("data.workers", "data.threads", "data.read_ahead", "data.memory_mb", "data.open_shards")

# Programs compiled by different releases of these need not fit together.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")

# All processes have just met; one that takes longer than this to say three lines is stuck.
_START_S = 300.0


def check_alike(config: RunConfig) -> None:
    """Refuses to start where hosts have another config or other code than most; in every process, naming them.

    Raises:
      UsageError: naming host and key.
      HostMissing: a host says nothing.
    """
    facts = {f"config.{key}": value for key, value in _flat(config.to_dict()) if key not in _OF_A_MACHINE}
    processes.agree(facts, "config", _START_S)
    components = user_files.digests(getattr(config, "imports", ()))
    processes.agree({**_code(Path(unihetero_jax.__file__).parent), **components}, "code", _START_S)


def check_data_alike(fingerprints: Iterable[str]) -> None:
    """Refuses to start where hosts see other datasets than most.

    Args:
      fingerprints: digest of each of the run's datasets.

    Raises:
      UsageError: naming host and dataset.
    """
    if jax.process_count() > 1:
        # The same path may be on a disk of each host's own.
        found = {f"dataset {number}": digest for number, digest in enumerate(fingerprints)}
        processes.agree(found, "data", None)


def introduce(workdir: Path) -> None:
    """Says on the first host what the job consists of: one line for the hosts that are alike."""
    if jax.process_count() == 1:
        return
    devices = jax.local_devices()
    about = f"{len(devices)} {devices[0].device_kind} devices, {os.cpu_count()} cores"
    said = processes.gather("introduction", json.dumps([socket.gethostname(), about]), _START_S)
    groups: dict[str, list[str]] = {}
    for number, (host, what) in enumerate(map(json.loads, said)):
        groups.setdefault(what, []).append(f"{number} ({host})")
    if processes.is_first():
        for what, hosts in groups.items():
            log.info("%d processes with %s each: %s", len(hosts), what, ", ".join(hosts))
        log.info("each of them writes %s", workdir / "logs")


def compare_data_wait(share: float) -> str:
    """Tells the others which share of its time this host waits for data.

    Returns:
      On the first host, who waits longest, where that is longer than here: ``, host 5 (gpu-07) 12.0%``. What others
      tell is of their last window.
    """
    processes.tell("data wait", f"{share:.6f}")
    waits = _data_waits()
    slowest = max(waits, key=lambda process: waits[process], default=0)
    return f", {processes.name(slowest)} {waits[slowest]:.1%}" if slowest else ""


def _data_waits() -> dict[int, float]:
    if not processes.is_first():
        return {}
    return {process: float(text) for process, text in sorted(processes.told("data wait").items())}


def digest(kept: HostLog) -> None:
    """Says on the first host how many warnings each of the others has had, the last of them, and who waits for data."""
    if jax.process_count() == 1:
        return
    said = processes.gather("digest", json.dumps([kept.warnings, kept.last]))
    if processes.is_first():
        for number, (warnings, last) in enumerate(map(json.loads, said)):
            if number and warnings:
                log.info("%s: %d warnings, the last: %s", processes.name(number), warnings, last)
    if waits := _data_waits():
        slowest, mean = max(waits, key=lambda process: waits[process]), sum(waits.values()) / len(waits)
        most = f"{processes.name(slowest)} {waits[slowest]:.1%}"
        log.info("data wait %.1f%% of the last steps; the slowest is %s", 100 * mean, most)


def _code(package: Path) -> dict[str, str]:
    content = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"unihetero_jax": unihetero_jax.__version__, "sources": content.hexdigest()[:16], **versions}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found
