"""Processes and threads that prepare data: how many, and their environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE_ROOT = Path(__file__).parents[3]
_MOST_THREADS = 16
# With the defaults a host gives half of its cores to workers: the rest is for the training steps and for a second
# thread in each worker. Eight workers make some 20,000 samples a second of 256-pixel JPEGs. Where cores are few, the
# steps need all of them.
_FEWEST_CORES, _CORES_PER_WORKER, _MOST_WORKERS = 4, 2, 8
# Without JAX a worker starts with some 72 MB; samples that wait for their row, and readers of shards, come on top.
_WORKER_BYTES = 100 << 20


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_threads() -> int:
    """Return one thread per usable core, at most 16: beyond that they wait for the interpreter's lock."""
    return min(usable_cores(), _MOST_THREADS)


def share_of_cores(workers: int, threads: int, rows: int, memory_bytes: int) -> tuple[int, int]:
    """Decide how many worker processes make rows, and how many threads each process that makes rows has.

    Args:
        workers: The number wanted; 0 chooses by the machine, -1 means none.
        threads: The number wanted; 0 chooses by the machine.
        rows: Rows to make; a worker has at least one.
        memory_bytes: Memory that the workers may take where their number is chosen here.

    Returns:
        Workers, and threads per process.
    """
    cores = usable_cores()
    if not workers:
        # On few cores, processes would only take turns with the training steps.
        most = min(cores // _CORES_PER_WORKER, _MOST_WORKERS, memory_bytes // _WORKER_BYTES)
        workers = most if cores >= _FEWEST_CORES else 0
    workers = min(max(workers, 0), rows)
    return workers, threads or (max(1, min(cores // workers, 2)) if workers else usable_threads())


def child_environment() -> dict[str, str]:
    """Return the environment of a worker process, in which Python imports the same packages as this one."""
    path = [os.fspath(_PACKAGE_ROOT), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
