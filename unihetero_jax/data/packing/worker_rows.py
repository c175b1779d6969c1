"""Rows made by worker processes, each its own part of every batch, straight into memory that all of them share.

The interpreter's lock lets the threads of one process do little more than decode at the same time; processes do all of
it. They are not ``multiprocessing`` children on purpose: those import the caller's main module again, and with it JAX,
or are forked with locks that its threads hold.
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
from pathlib import Path
from typing import Any

from unihetero_jax.data.packing import row_worker
from unihetero_jax.data.packing.row_stream import DataState, PackedBatch
from unihetero_jax.data.packing.row_worker import LENGTH, SLOT, Opening
from unihetero_jax.data.packing.rows import OnSkip, Recipe, Skip
from unihetero_jax.data.packing.shared_batches import Layout, Ring
from unihetero_jax.errors import UsageError

# While one batch is waited for, workers that have done their part go on with the next. More gained nothing.
IN_WORK = 2
_RECEIVED_BYTES = 1 << 16
# A process whose socket has ended is about to end.
_LAST_BREATH_S = 1.0


class WorkerLost(Exception):
    """A worker process ended, and nobody had told it to."""


class WorkerRows:
    """Some rows of the global batch, made by processes; ``data.packing.rows.Rows`` in each.

    Args:
      recipe: what they are made of; sent to the workers, and so to be pickled.
      rows: their numbers in the global batch.
      workers: processes, at least 1.
      threads: of each.
      state: of all rows of the global batch.
      on_skip: told of every record that is left out, in the turn of its batch; what it raises stops the batch.

    Raises:
      TypeError: the recipe cannot be sent to another process.
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
        self._making = threading.Lock()
        indices = range(len(rows))
        parts = [indices[number::workers] for number in range(min(workers, len(rows)))]
        try:
            openings = [pickle.dumps(Opening(recipe, rows, part, threads, state)) for part in parts]
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise TypeError(f"what rows are made of cannot be sent to a worker process: {error}") from error
        self._ring = Ring(Layout(len(rows), recipe.shape, recipe.window))
        self._given: collections.deque[int] = collections.deque()
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
        """The next batch and the state after it, of these rows.

        The arrays lie in shared memory that is used again when nobody refers to them or to a view of them.

        Raises:
          UsageError: as it would without workers.
          RuntimeError: a worker failed; its traceback went to standard error.
          WorkerLost: one has ended.
        """
        with self._making:
            if self._closed:
                raise WorkerLost("the data workers were ended")
            while len(self._given) < IN_WORK:
                slot = self._ring.take()
                self._given.append(slot)
                for worker in self._workers:
                    worker.give(slot)
            self._hear(0.0)
            behind = list(self._workers)
            while behind := [worker for worker in behind if not self._has_done(worker)]:
                self._hear(None)
            batch, state = self._ring.arrays(self._given.popleft())
        batch["skipped"] = state["skipped"]
        return batch, state

    def close(self) -> None:
        """Ends the workers; a call of ``make`` in another thread ends with ``WorkerLost``."""
        for worker in self._workers:
            worker.end()
        with self._making:
            if not self._closed:
                self._closed = True
                self._selector.close()
                for worker in self._workers:
                    worker.connection.close()
                self._ring.close()

    def _has_done(self, worker: _Worker) -> bool:
        """Whether its part of the batch is there; takes up what it said on the way."""
        while worker.said:
            message = worker.said.popleft()
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

    def _hear(self, timeout_s: float | None) -> None:
        """Takes in what workers say; without a timeout, waits until one does."""
        for key, _ in self._selector.select(timeout_s):
            worker: _Worker = key.data
            if not worker.hear():
                self._selector.unregister(worker.connection)
                # One that said why it ends is heard in its turn.
                if not worker.said or not worker.said[-1].keys() & {"usage", "failed"}:
                    raise WorkerLost(worker.obituary())


class _Worker:
    """One process, and what it has said that was not its turn yet."""

    def __init__(self, opening: bytes, memory: int, drawn: int):
        self.said: collections.deque[dict[str, Any]] = collections.deque()
        self.drawn = drawn  # samples, as far as it has told
        self._line = b""
        self._opening: bytes | None = opening
        self.connection, theirs = socket.socketpair()
        # The kernel ends a child with the thread that started it: with one that ends before the process, too early.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        with theirs:
            self._process = subprocess.Popen(
                # -P: another checkout in the current directory is not what the parent runs.
                [sys.executable, "-P", "-m", row_worker.__name__, *map(str, (theirs.fileno(), memory, parent))],
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Control-C is for the parent, which ends the workers.
                start_new_session=True,
                env=_environment(),
            )

    def give(self, slot: int) -> None:
        """Has the next batch made in a slot."""
        # Of one that has ended, the end of the socket is what is noticed.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self._opening is not None:
                # Here, not earlier: the worker reads it when it has started, and others start meanwhile.
                self.connection.sendall(LENGTH.pack(len(self._opening)) + self._opening)
                self._opening = None
            self.connection.sendall(SLOT.pack(slot))

    def hear(self) -> bool:
        """Takes in what has come; False at the end."""
        try:
            received = self.connection.recv(_RECEIVED_BYTES)
        except ConnectionResetError:
            return False
        *lines, self._line = (self._line + received).split(b"\n")
        self.said += map(json.loads, lines)
        return bool(received)

    def obituary(self) -> str:
        """How it ended."""
        name = f"data worker (process {self._process.pid})"
        try:
            code = self._process.wait(_LAST_BREATH_S)
        except subprocess.TimeoutExpired:
            return f"{name} closed its socket"
        if code >= 0:
            return f"{name} ended with exit code {code}"
        why = "; is memory short?" if code == -signal.SIGKILL else ""
        return f"{name} was killed by {signal.Signals(-code).name}{why}"

    def end(self) -> None:
        # It only reads: there is nothing to finish.
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    package_root = os.fspath(Path(__file__).parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package_root, *filter(None, sys.path)]),
        # Records of somebody's own may come of a module that imports JAX: the accelerator is the parent's.
        "JAX_PLATFORMS": "cpu",
        # Nothing is multiplied here, and NumPy's library starts a thread a core.
        "OPENBLAS_NUM_THREADS": "1",
    }
