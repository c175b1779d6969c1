"""Ends a process whose steps have stopped: a collective that waits for a dead neighbour never comes back by itself."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from pathlib import Path

from unihetero_jax.parallel.processes import PREEMPTED, is_first

log = logging.getLogger(__name__)

# The others notice a little later, and lose their connections when one leaves. The first process coordinates: when it
# goes, JAX aborts those that are still there.
_LINGER_S = 5.0
_LINGER_FIRST_S = 10.0


class Watchdog:
    """From ``start`` to ``close``, expects a sign of life every so many seconds.

    Without one, it writes the Python stacks of all threads and leaves with exit code 75, so that the launcher starts
    the run again from its newest checkpoint. In a collective all hosts wait for the one that hangs, so each of them
    writes its own.
    """

    def __init__(self, timeout_s: float, path: Path):
        """Args:
        timeout_s: seconds without a sign of life; 0: for ever.
        path: where the stacks are appended; its directory is there.
        """
        self._timeout_s = timeout_s
        self._path = path
        self._seen = time.monotonic()
        self._step = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch."""
        self._seen = time.monotonic()
        if self._timeout_s:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def alive(self, step: int) -> None:
        """A sign of life: this step is done."""
        self._step = step
        self._seen = time.monotonic()

    def close(self) -> None:
        """Watches no longer."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(max(self._seen + self._timeout_s - time.monotonic(), 0.01)):
            silent = time.monotonic() - self._seen
            if silent >= self._timeout_s and self._tell(silent):
                # A hung thread cannot be joined, and what hangs may hold a lock that an orderly end would wait for.
                os._exit(PREEMPTED)

    def _tell(self, silent: float) -> bool:
        """Writes the stacks, and lingers; whether it is still time to leave then."""
        seen = self._seen
        text = (
            f"no step finished in {silent:.0f} s after step {self._step} (config.train.hang_timeout="
            f"{self._timeout_s:g}); stacks of all threads are in {self._path}"
        )
        try:
            with self._path.open("a", encoding="utf-8") as file:
                print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
            log.error("%s; leaving, to be started again", text)
        except OSError as error:
            log.error("%s, but for this: %s", text, error)
        if self._closed.wait(_LINGER_FIRST_S if is_first() else _LINGER_S) or self._seen != seen:
            log.warning("a step finished after all; going on")
            return False
        return True
