"""What the hosts of a run must have in common, and what the first host logs about all of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import jax

from unihetero_jax.config import RunConfig, leaves, user_files
from unihetero_jax.config.constraints import PER_HOST
from unihetero_jax.parallel import processes
from unihetero_jax.train.monitor.host_log import HostLog

log = logging.getLogger(__name__)

# Programs compiled by different releases of these may not work together.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")

# All processes have just met; one that takes longer than this to send three lines is stuck.
_START_S = 300.0


def check_alike(config: RunConfig) -> None:
    """Refuse to start where hosts have another config or other code than most; in every process, naming them.

    Raises:
      UsageError: naming host and key.
      HostMissing: a host does not respond.
    """
    facts = {f"config.{key}": value for key, field, value in leaves(config) if PER_HOST not in field.marks}
    processes.check_equal(facts, "config", _START_S)
    components = user_files.digests(getattr(config, "modules", ()))
    processes.check_equal({**_code(Path(__file__).parents[1]), **components}, "code", _START_S)


def check_data_alike(fingerprints: Iterable[str]) -> None:
    """Refuse to start where hosts see other datasets than most.

    Args:
      fingerprints: digest of each of the run's datasets.

    Raises:
      UsageError: naming host and dataset.
    """
    if jax.process_count() > 1:
        # The same path may be on a local disk of each host.
        found = {f"dataset {number}": digest for number, digest in enumerate(fingerprints)}
        processes.check_equal(found, "data", None)


def log_hosts(workdir: Path) -> None:
    """Log on the first host what the job consists of: one line for the hosts that are alike."""
    if jax.process_count() == 1:
        return
    devices = jax.local_devices()
    about = f"{len(devices)} {devices[0].device_kind} devices, {os.cpu_count()} cores"
    groups: dict[str, list[str]] = {}
    for number, text in enumerate(processes.gather("hosts", json.dumps([socket.gethostname(), about]), _START_S)):
        host, hardware = json.loads(text)
        groups.setdefault(hardware, []).append(f"{number} ({host})")
    if processes.is_first():
        for hardware, hosts in groups.items():
            log.info("%d processes with %s each: %s", len(hosts), hardware, ", ".join(hosts))
        log.info("logs of each process: %s", workdir / "logs")


def compare_data_wait(share: float) -> str:
    """Publish which share of its time this host waits for data.

    Returns:
      On the first host, the one that waits longest, where that is longer than here: ``, host 5 (gpu-07) 12.0%``. The
      others' shares are of their last window.
    """
    processes.publish("data wait", f"{share:.6f}")
    waits = _data_waits()
    slowest = max(waits, key=lambda process: waits[process], default=0)
    return f", {processes.name(slowest)} {waits[slowest]:.1%}" if slowest else ""


def _data_waits() -> dict[int, float]:
    if not processes.is_first():
        return {}
    return {process: float(text) for process, text in sorted(processes.published("data wait").items())}


def log_summary(host_log: HostLog) -> None:
    """Log on the first host the number of warnings of each other host, its last one, and who waits for data."""
    if jax.process_count() == 1:
        return
    found = processes.gather("summary", json.dumps([host_log.warnings, host_log.last]))
    if processes.is_first():
        for number, (warnings, last) in enumerate(map(json.loads, found)):
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
    return {"unihetero_jax": content.hexdigest()[:16], **versions}
