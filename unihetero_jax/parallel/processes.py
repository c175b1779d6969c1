"""Processes of a multi-host job: start, barriers, exchange of text, preemption, and rows of the batch."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from unihetero_jax.errors import UsageError
from unihetero_jax.parallel import environment, rendezvous

log = logging.getLogger(__name__)

PREEMPTED = 75  # EX_TEMPFAIL: launchers and SLURM's requeue start a process again that exits with it

HostMissing = rendezvous.HostMissing

# Seconds that a process waits for the others when it starts: nodes boot, and images are pulled.
START_TIMEOUT = "UNIHETERO_START_TIMEOUT"
_START_TIMEOUT_S = 600.0
# JAX waits for the others to leave only after a run's last barrier; after a failure they never do.
_LEAVE_S = 30
_LINGER_S = 3.0
_POLL_S = 10.0
_REMIND_S = 60.0

_names: list[str] = [socket.gethostname()]
_passed: collections.Counter[str] = collections.Counter()


def start() -> None:
    """Join the other processes of the job, if the environment has any; call before any computation.

    ``JAX_COORDINATOR_ADDRESS`` (host:port), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, or SLURM's variables, or
    those of Cloud TPU and GKE; without any of them the process is alone. ``UNIHETERO_START_TIMEOUT`` is the number of
    seconds to wait for the others (600). Where ``JAX_PLATFORMS`` is ``cpu`` the devices are created, too.

    Raises:
      UsageError: some of the variables are missing or not numbers, or the coordinator's port is taken.
      HostMissing: naming the processes that did not arrive.
    """
    if jax.distributed.is_initialized():
        return
    cluster = environment.find()
    if cluster is None:
        return
    text = os.environ.get(START_TIMEOUT, str(_START_TIMEOUT_S))
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise UsageError(f"{START_TIMEOUT}={text}: expected seconds above 0")
    try:
        _names[:] = rendezvous.meet(
            cluster.address, cluster.count, cluster.number, socket.gethostname(), timeout_s, cluster.hosts
        )
    except OSError as error:
        raise UsageError(f"process 0 cannot listen at {cluster.address}: {error.strerror or error}") from error
    jax.distributed.initialize(
        cluster.address,
        cluster.count,
        cluster.number,
        local_device_ids=cluster.devices,
        coordinator_bind_address=cluster.address if rendezvous.bind_host(cluster.address) else None,
        cluster_detection_method="deactivate",
        shutdown_timeout_seconds=_LEAVE_S,
    )
    if getattr(jax.config, "jax_platforms", None) == "cpu":
        with _patient_threads():
            jax.local_devices()


@contextlib.contextmanager
def _patient_threads() -> Iterator[None]:
    """Start threads within this context as SCHED_BATCH: they do not preempt when they wake up (Linux, sched(7)).

    Gloo, which moves data between CPUs, has a thread that reads sockets. Where it wakes up on the core of the thread
    that has just requested data and still holds the socket's lock, it preempts that thread and spins on the lock for a
    whole time slice: 4 ms for each collective instead of 0.14 ms, all of it processor time.
    """
    changed = _change_policy("SCHED_OTHER", "SCHED_BATCH")
    try:
        yield
    finally:
        if changed:
            _change_policy("SCHED_BATCH", "SCHED_OTHER")


def _change_policy(old: str, new: str) -> bool:
    """Change the policy of this thread from the old one, if it has that; return whether it was changed."""
    if not hasattr(os, new):
        return False
    try:
        if os.sched_getscheduler(0) != getattr(os, old):
            return False
        os.sched_setscheduler(0, getattr(os, new), os.sched_param(0))
    except OSError:  # some sandboxes forbid it: slower, but still correct
        return False
    return True


def abandon(code: int) -> NoReturn:
    """Exit at once: an orderly exit would wait for hosts that never arrive, and then abort with another exit code."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_count() > 1 and is_first():
        # This process runs the service that the others are notified by; JAX would abort them before they are.
        time.sleep(_LINGER_S)
    os._exit(code)


def is_first() -> bool:
    """Whether this process writes what is written once per job."""
    return jax.process_index() == 0


def share() -> tuple[int, int]:
    """Return the index of this process, and the number of processes."""
    return jax.process_index(), jax.process_count()


def name(process: int) -> str:
    """Return the name of a process in messages, such as ``host 3 (gpu-07)``."""
    return f"host {process} ({_names[process]})" if process < len(_names) else f"host {process}"


def barrier(name: str, timeout_s: float | None = None) -> None:
    """Wait for all processes of the job; after a minute, the missing ones are logged.

    Args:
      name: of the point that all have to reach; the same name may be used again.
      timeout_s: how long to wait; forever by default, as the first process may be building a dataset.

    Raises:
      HostMissing: naming the processes that did not arrive.
    """
    gather(name, "", timeout_s)


def gather(topic: str, text: str, timeout_s: float | None = None) -> list[str]:
    """Gather a text of every process, by process; this is a barrier, too.

    Args:
      topic: name of the point that all have to reach; the same name may be used again.
      text: of this process.
      timeout_s: as for ``barrier``.

    Raises:
      HostMissing: naming the processes that did not arrive.
    """
    count = jax.process_count()
    if count == 1:
        return [text]
    client = _client()
    _passed[topic] += 1
    place = f"unihetero/{topic}/{_passed[topic]}"
    client.key_value_set(f"{place}/from/{jax.process_index()}", text)
    started = reminded = time.monotonic()
    while True:
        if is_first():
            found = _read_all(client, f"{place}/from/")
            if len(found) == count:
                client.key_value_set(f"{place}/all", json.dumps([found[process] for process in range(count)]))
        now = time.monotonic()
        left = float("inf") if timeout_s is None else started + timeout_s - now
        # The first process collects the texts and the others wait for its list, so that the service answers each of
        # them once, not once about every other.
        everything = _wait_for(client, f"{place}/all", min(0.1 if is_first() else _POLL_S, max(left, 0.01)))
        if everything is not None:
            return [str(part) for part in json.loads(everything)]
        present = _read_all(client, f"{place}/from/")
        absent = [name(process) for process in range(count) if process not in present]
        if left <= 0:
            raise HostMissing(f"not at {topic!r} after {timeout_s:g} s: {', '.join(absent) or name(0)}")
        if now - reminded >= _REMIND_S:
            reminded = now
            log.warning("waiting at %r since %.0f s for %s", topic, now - started, ", ".join(absent) or name(0))


def publish(topic: str, text: str) -> None:
    """Publish a text to the other processes without waiting for them; it replaces the last one on the topic."""
    if jax.process_count() > 1:
        _client().key_value_set(f"unihetero/published/{topic}/{jax.process_index()}", text, allow_overwrite=True)


def published(topic: str) -> dict[int, str]:
    """Return the last text on a topic of each process that has published one."""
    return {} if jax.process_count() == 1 else _read_all(_client(), f"unihetero/published/{topic}/")


def check_equal(facts: Mapping[str, Any], topic: str, timeout_s: float | None = None) -> None:
    """Refuse to continue unless all processes have the same values.

    Args:
      facts: JSON values by key, which must be equal everywhere.
      topic: what the values describe, such as ``config``.
      timeout_s: as for ``barrier``.

    Raises:
      UsageError: in every process, naming the hosts that differ from most others, the keys, and both values.
      HostMissing: as ``barrier``.
    """
    found = differing([json.loads(text) for text in gather(topic, json.dumps(facts, sort_keys=True), timeout_s)])
    if found:
        parts = [f"{name(process)}: {'; '.join(keys)}" for process, keys in found.items()]
        raise UsageError(f"the hosts do not agree about {topic}: {', and '.join(parts)}; start all of them alike")


def differing(everywhere: list[dict[str, Any]]) -> dict[int, list[str]]:
    """Return, by process that differs from most others (of two, from the first), its keys, each with both values."""
    found: dict[int, list[str]] = {}
    for key in sorted(set().union(*everywhere)):
        values = [json.dumps(facts[key]) if key in facts else "nothing" for facts in everywhere]
        # `most_common` keeps the order of equally common values, so that the first process wins.
        usual = collections.Counter(values).most_common(1)[0][0]
        for process, value in enumerate(values):
            if value != usual:
                found.setdefault(process, []).append(f"{key}={value}, where others have {usual}")
    return found


def _client() -> Any:
    # JAX has no public access to its coordination service; Orbax and multihost_utils use this.
    client = distributed.global_state.client
    assert client is not None, "several processes without jax.distributed.initialize"
    return client


def _read_all(client: Any, place: str) -> dict[int, str]:
    return {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(place)}


def _wait_for(client: Any, key: str, timeout_s: float) -> str | None:
    try:
        return client.blocking_key_value_get(key, int(timeout_s * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None


def rows_here(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Return the rows of the global batch on this process's devices."""
    rows: set[int] = set()
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        assert index is not None
        rows.update(range(*index[0].indices(batch_size)))
    return sorted(rows)


def place_rows(local: np.ndarray, rows: list[int], batch_size: int, sharding: NamedSharding) -> jax.Array:
    """Build a global array, [batch_size, …], of this process's rows of it, in the order of ``rows``."""
    where = np.full(batch_size, -1)
    where[rows] = np.arange(len(rows))
    shape = (batch_size, *local.shape[1:])

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return local[where[index[0]]][(slice(None), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, part)


class Preemption:
    """Turns SIGTERM into a request to save and stop.

    In a single process, a signal handler receives it; unless it is deferred there is nothing to save, and the process
    exits at once. With several processes, JAX's coordination service agrees on one step at which all of them stop.
    """

    def __init__(self) -> None:
        self._requested = False
        self._deferred = False
        self._previous = None
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._handle)

    def defer(self, deferred: bool) -> None:
        """Set whether a signal waits for ``requested`` (True) or ends the process at once (False)."""
        self._deferred = deferred
        if self._requested and not deferred:
            raise SystemExit(PREEMPTED)

    def requested(self, step: int) -> bool:
        """Whether all processes are to stop after this step; call it once per step in every process."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._requested

    def close(self) -> None:
        """Restore the previous signal handler."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._requested = True
        if not self._deferred:
            raise SystemExit(PREEMPTED)
