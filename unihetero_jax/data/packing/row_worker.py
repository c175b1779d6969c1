"""A worker of ``data.packing.worker_rows``: makes some rows of every batch straight into the memory that it shares.

It is started with the numbers of two descriptors, a socket and the memory. The first message on the socket, its length
before it, says what to make (``Opening``, pickled: by its parent, for itself); then comes the number of a slot for each
batch. It answers with a line of JSON for each record that is left out, and one for each batch. When the socket ends, so
does it: its parent has ended, however that was, and nobody wants what it is making.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.data.packing.rows import Recipe, Rows, Skip
from unihetero_jax.data.packing.shared_batches import Layout, Mapped
from unihetero_jax.errors import UsageError

LENGTH = struct.Struct("<Q")
SLOT = struct.Struct("<I")
_COLLECT_AFTER = 20_000
# Of prctl(2).
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Opening:
    """What a worker makes.

    Attributes:
      recipe: of all rows.
      rows: numbers in the global batch of all rows of the shared batches.
      mine: which of these the worker makes, counted from 0.
      threads: that read and decode.
      state: of all rows of the global batch.
    """

    recipe: Recipe
    rows: Sequence[int]
    mine: Sequence[int]
    threads: int
    state: DataState


class _Told:
    """What a worker says to its parent, from any of its threads."""

    def __init__(self, connection: socket.socket):
        self._connection, self._lock = connection, threading.Lock()

    def __call__(self, message: dict[str, Any]) -> None:
        try:
            with self._lock:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            os._exit(1)

    def skip(self, skip: Skip) -> None:
        self({"skip": vars(skip)})


def main(connection: socket.socket, memory: int) -> None:
    """Makes rows until the socket ends."""
    tell = _Told(connection)
    received = connection.makefile("rb")
    try:
        (length,) = LENGTH.unpack(received.read(LENGTH.size))
        opening: Opening = pickle.loads(received.read(length))
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(received, slots), daemon=True).start()
        _make(opening, memory, slots, tell)
    except UsageError as error:
        tell({"usage": str(error)})
    except Exception as error:
        traceback.print_exc()
        tell({"failed": f"{type(error).__name__}: {error}"})


def _make(opening: Opening, memory: int, slots: queue.SimpleQueue[int], tell: _Told) -> None:
    recipe = opening.recipe
    rows = Rows(recipe, [opening.rows[index] for index in opening.mine], opening.threads, opening.state, tell.skip)
    # Samples make no cycles. To look for some among all that was imported, every few samples, takes 4% of the time.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    layout = Layout(len(opening.rows), recipe.shape, recipe.window)
    mapped = Mapped(memory, layout.bytes)
    while True:
        batch, state = layout.arrays(mapped[slots.get()])
        rows.make(batch, opening.mine)
        for name, array in rows.state().items():
            state[name][opening.mine] = array
        tell({"done": True})


def _listen(received: BinaryIO, slots: queue.SimpleQueue[int]) -> None:
    """Passes the parent's words on; ends the process with the parent's last, whatever its other threads are at."""
    with contextlib.suppress(OSError):
        while len(word := received.read(SLOT.size)) == SLOT.size:
            slots.put(SLOT.unpack(word)[0])
    os._exit(0)


def _die_with(parent: int) -> None:
    """Also when a library holds the interpreter's lock for good, this process does not outlive its parent (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    # The module that is run has another name than the one that its parent pickled for.
    from unihetero_jax.data.packing.row_worker import main as run

    _connection, _memory, _parent = map(int, sys.argv[1:])
    if _parent and sys.platform == "linux":
        _die_with(_parent)
    run(socket.socket(fileno=_connection), _memory)
