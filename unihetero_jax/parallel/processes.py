"""Processes of a multi-host job: how they start, agree to stop, and which rows of the batch each of them owns."""

from __future__ import annotations

import os
import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from unihetero_jax.errors import UsageError

PREEMPTED = 75  # EX_TEMPFAIL: launchers and SLURM's requeue take it as "start me again"

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start() -> None:
    """Joins the other processes of the job, if the environment names a coordinator; call before any computation.

    ``JAX_COORDINATOR_ADDRESS`` (host:port), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` are read; without the first
    the process is alone.

    Raises:
      UsageError: some of the variables are missing or no numbers.
    """
    address = os.environ.get(_VARIABLES[0])
    if not address or jax.distributed.is_initialized():
        return
    try:
        count, number = (int(os.environ[name]) for name in _VARIABLES[1:])
    except KeyError as error:
        raise UsageError(
            f"{_VARIABLES[0]} is set, {error.args[0]} is not: expected all of {', '.join(_VARIABLES)}"
        ) from None
    except ValueError as error:
        raise UsageError(f"{_VARIABLES[1]} and {_VARIABLES[2]}: expected integers: {error}") from None
    if not 0 <= number < count:
        raise UsageError(f"JAX_PROCESS_ID={number}: expected 0 to {count - 1} (JAX_NUM_PROCESSES={count})")
    jax.distributed.initialize(address, count, number)


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes of the job."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def rows_here(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Rows of the global batch that this process's devices hold."""
    rows: set[int] = set()
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        assert index is not None
        rows.update(range(*index[0].indices(batch_size)))
    return sorted(rows)


def place_rows(local: np.ndarray, rows: list[int], batch_size: int, sharding: NamedSharding) -> jax.Array:
    """A global array [batch_size, …] from this process's rows of it, in the order of ``rows``."""
    where = np.full(batch_size, -1)
    where[rows] = np.arange(len(rows))
    shape = (batch_size, *local.shape[1:])

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return local[where[index[0]]][(slice(None), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, part)


class Preemption:
    """Turns SIGTERM into a request to save and stop.

    Alone, a signal handler takes it; unless it is deferred there is nothing to save, and the process exits at once.
    With several processes JAX's coordination service agrees on one step at which all of them stop.
    """

    def __init__(self) -> None:
        self._requested = False
        self._deferred = False
        self._previous = None
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._handle)

    def defer(self, deferred: bool) -> None:
        """Whether a signal waits for ``requested`` (True) or ends the process at once (False)."""
        self._deferred = deferred
        if self._requested and not deferred:
            raise SystemExit(PREEMPTED)

    def requested(self, step: int) -> bool:
        """Whether all processes are to stop after this step; call it once a step in every process."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._requested

    def close(self) -> None:
        """Gives the signal back."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._requested = True
        if not self._deferred:
            raise SystemExit(PREEMPTED)
