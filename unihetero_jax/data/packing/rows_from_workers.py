"""Rows made by worker processes, each its own part of every batch, in memory that all of them share.

Because of the interpreter's lock, the threads of one process do little more than decode in parallel; processes do
everything in parallel. They are deliberately not ``multiprocessing`` children: those import the caller's main module
again, and with it JAX, or are forked with locks that its threads hold.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import cloudpickle

from unihetero_jax.config.user_files import imported
from unihetero_jax.data.packing import row_worker
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.data.packing.processes import child_environment
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.data.packing.row_worker import LENGTH, SLOT, Opening
from unihetero_jax.data.packing.rows import OnSkip, Recipe, Skip
from unihetero_jax.data.packing.shared_batches import Layout, Ring
from unihetero_jax.errors import UsageError

# Batches being made: workers that have done their part of one continue with the next. More gained nothing.
IN_WORK = 2
_RECEIVED_BYTES = 1 << 16
# How long to wait for the exit code of a process whose socket has ended.
_EXIT_TIMEOUT_S = 1.0


class WorkerLost(Exception):
    """A worker process ended unexpectedly."""


class WorkerRows:
    """Some rows of the global batch, made by processes; see `unihetero_jax.data.packing.rows.Rows`.

    Args:
        recipe: What they are made of; it is pickled, lambdas and what a notebook defines too.
        rows: Their numbers in the global batch.
        workers: Processes, at least 1.
        threads: Threads per process.
        state: Data state of all rows of the global batch.
        on_skip: Called for every skipped record, in the turn of its batch; an exception stops the batch.

    Raises:
        TypeError: The recipe cannot be pickled.
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: Sequence[int],
        workers: int,
        threads: int,
        state: DataState,
        on_skip: OnSkip,
    ):
        self._on_skip = on_skip
        self._closed = False
        self._lock = threading.Lock()
        indices = range(len(rows))
        parts = [indices[number::workers] for number in range(min(workers, len(rows)))]
        try:
            openings = [
                pickle.dumps((imported(), cloudpickle.dumps(Opening(recipe, rows, part, threads, state))))
                for part in parts
            ]
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise TypeError(f"the data source cannot be sent to a worker process: {error}") from error
        self._ring = Ring(Layout(len(rows), recipe.shape, recipe.window))
        self._pending: collections.deque[int] = collections.deque()
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        try:
            for opening, part in zip(openings, parts, strict=True):
                worker = _Worker(opening, self._ring.memory, int(state["drawn"][[rows[index] for index in part]].sum()))
                self._workers.append(worker)
                self._selector.register(worker.connection, selectors.EVENT_READ, worker)
        except BaseException:
            self.close()
            raise

    def make(self) -> tuple[PackedBatch, DataState]:
        """Return the next batch of these rows and the state after it.

        The arrays lie in shared memory, which is reused when nobody refers to them or to a view of them.

        Raises:
            UsageError: As without workers.
            RuntimeError: A worker failed; its traceback went to standard error.
            WorkerLost: A worker has ended.
        """
        with self._lock:
            if self._closed:
                raise WorkerLost("the data workers were stopped")
            while len(self._pending) < IN_WORK:
                slot = self._ring.take()
                self._pending.append(slot)
                for worker in self._workers:
                    worker.give(slot)
            self._receive(0.0)
            behind = list(self._workers)
            while behind := [worker for worker in behind if not self._has_done(worker)]:
                self._receive(None)
            batch, state = self._ring.arrays(self._pending.popleft())
        batch["skipped"] = state["skipped"]
        return batch, state

    def close(self) -> None:
        """End the workers; a call of ``make`` in another thread raises ``WorkerLost``."""
        for worker in self._workers:
            worker.end()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._selector.close()
                for worker in self._workers:
                    worker.connection.close()
                self._ring.close()

    def _has_done(self, worker: _Worker) -> bool:
        """Return whether the worker has done its part of the batch, and handle its messages up to that."""
        while worker.messages:
            message = worker.messages.popleft()
            if "done" in message:
                return True
            if "skip" in message:
                worker.drawn = message["skip"]["drawn"]
                drawn = sum(other.drawn for other in self._workers)
                self._on_skip(Skip(**{**message["skip"], "drawn": drawn}))
            elif "usage" in message:
                raise UsageError(message["usage"])
            else:
                raise RuntimeError(f"a data worker failed ({message['failed']}); its traceback is above")
        return False

    def _receive(self, timeout_s: float | None) -> None:
        """Receive messages of workers; without a timeout, wait for one."""
        for key, _ in self._selector.select(timeout_s):
            worker: _Worker = key.data
            if not worker.receive():
                self._selector.unregister(worker.connection)
                # A worker that reported why it ends is handled in its turn.
                if not worker.messages or not worker.messages[-1].keys() & {"usage", "failed"}:
                    raise WorkerLost(worker.obituary())


class _Worker:
    """One process, and its messages that are not handled yet."""

    def __init__(self, opening: bytes, memory: int, drawn: int):
        self.messages: collections.deque[dict[str, Any]] = collections.deque()
        self.drawn = drawn  # samples, as far as it has reported
        self._line = b""
        self._opening: bytes | None = opening
        self.connection, theirs = socket.socketpair()
        # The kernel would end the child with the thread that started it, which may end before this process.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        with theirs:
            self._process = subprocess.Popen(
                # -P: do not import another checkout in the current directory.
                [sys.executable, "-P", "-m", row_worker.__name__, *map(str, (theirs.fileno(), memory, parent))],
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Control-C reaches the parent only, which ends the workers.
                start_new_session=True,
                env=_environment(),
            )

    def give(self, slot: int) -> None:
        """Ask for the next batch in a slot."""
        # That a worker has ended is noticed by the end of its socket.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self._opening is not None:
                # Sent late: the worker reads it when it has started, and the others start meanwhile.
                self.connection.sendall(LENGTH.pack(len(self._opening)) + self._opening)
                self._opening = None
            self.connection.sendall(SLOT.pack(slot))

    def receive(self) -> bool:
        """Receive messages; return False at the end of the socket."""
        try:
            received = self.connection.recv(_RECEIVED_BYTES)
        except ConnectionResetError:
            return False
        *lines, self._line = (self._line + received).split(b"\n")
        self.messages += map(json.loads, lines)
        return bool(received)

    def obituary(self) -> str:
        """Describe how it ended."""
        name = f"data worker (process {self._process.pid})"
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"{name} closed its socket"
        if code >= 0:
            return f"{name} ended with exit code {code}"
        why = "; is memory short?" if code == -signal.SIGKILL else ""
        return f"{name} was killed by {signal.Signals(-code).name}{why}"

    def end(self) -> None:
        # It only reads, so there is nothing to finish.
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    return {
        **child_environment(),
        # A user's source may import JAX: the accelerator belongs to the parent.
        "JAX_PLATFORMS": "cpu",
        # Nothing is multiplied here, and OpenBLAS starts a thread per core.
        "OPENBLAS_NUM_THREADS": "1",
    }
