"""Worker process of `unihetero_jax.data.packing.rows_from_workers`: makes some rows of every batch in shared memory.

It is started with two descriptors, a socket and the memory. The first message on the socket, preceded by its length, is
its assignment, pickled by its parent: the user's modules, and an ``Opening`` that may need them. Then comes a number
of a memory slot per batch. It answers with a line of JSON for each skipped record, and one for each batch. It ends
with the socket: its parent has ended, and nobody needs its rows.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
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
# From prctl(2).
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Opening:
    """Assignment of a worker.

    Attributes:
        recipe: What all rows are made of.
        rows: Numbers in the global batch of all rows of the shared batches.
        mine: Indices of those rows that this worker makes.
        threads: Threads that read and decode.
        state: Data state of all rows of the global batch.
    """

    recipe: Recipe
    rows: Sequence[int]
    mine: Sequence[int]
    threads: int
    state: DataState


class _Parent:
    """Sends messages to the parent, from any thread."""

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
    """Make rows until the socket ends."""
    send = _Parent(connection)
    received = connection.makefile("rb")
    try:
        (length,) = LENGTH.unpack(received.read(LENGTH.size))
        imports, pickled = pickle.loads(received.read(length))
        _import_grain()
        if imports:
            # The config package takes as long to import as the rest of a worker.
            from unihetero_jax.config.user_files import import_components

            import_components(imports)
        opening: Opening = pickle.loads(pickled)
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(received, slots), daemon=True).start()
        _make(opening, memory, slots, send)
    except UsageError as error:
        send({"usage": str(error)})
    except Exception as error:
        traceback.print_exc()
        send({"failed": f"{type(error).__name__}: {error}"})


def _import_grain() -> None:
    """Import grain without JAX: with it, each worker starts a second later and takes 140 MB more."""
    sys.modules["jax"] = None  # type: ignore[assignment]  # an import of it fails
    logging.disable()  # grain warns that it has no profiler
    import grain  # noqa: F401 - the datasets to unpickle are grain's

    logging.disable(logging.NOTSET)
    del sys.modules["jax"]  # a user's dataset may import it


def _make(opening: Opening, memory: int, slots: queue.SimpleQueue[int], send: _Parent) -> None:
    recipe = opening.recipe
    rows = Rows(recipe, [opening.rows[index] for index in opening.mine], opening.threads, opening.state, send.skip)
    # Samples form no reference cycles; searching all imported objects for some would take 4% of the time.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    layout = Layout(len(opening.rows), recipe.shape, recipe.window)
    mapped = Mapped(memory, layout.bytes)
    while True:
        batch, state = layout.arrays(mapped[slots.get()])
        rows.make(batch, opening.mine)
        for name, array in rows.state().items():
            state[name][opening.mine] = array
        send({"done": True})


def _listen(received: BinaryIO, slots: queue.SimpleQueue[int]) -> None:
    """Pass on the parent's messages; end the process with the socket, whatever its other threads are doing."""
    with contextlib.suppress(OSError):
        while len(data := received.read(SLOT.size)) == SLOT.size:
            slots.put(SLOT.unpack(data)[0])
    os._exit(0)


def _die_with(parent: int) -> None:
    """End this process with its parent even when a library holds the interpreter's lock forever (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    # ``__main__`` is not the module of the pickled classes: import it by its name.
    from unihetero_jax.data.packing.row_worker import main as run

    _connection, _memory, _parent = map(int, sys.argv[1:])
    if _parent and sys.platform == "linux":
        _die_with(_parent)
    run(socket.socket(fileno=_connection), _memory)
