"""End a process whose steps have stopped: a collective that waits for a dead host never returns by itself."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from pathlib import Path

from unihetero_jax.parallel.processes import PREEMPTED, is_first

log = logging.getLogger(__name__)

# The other processes time out a little later, and lose their connections when one exits. The first process is the
# coordinator: when it exits, JAX aborts the remaining ones.
_PAUSE_S = 1e6
_LINGER_S = 5.0
_LINGER_FIRST_S = 10.0


class Watchdog:
    """Expects a finished step every so many seconds, from ``start`` to ``close``.

    Without one, it writes the Python stacks of all threads and exits with code 75, so that the launcher restarts the
    run from its newest checkpoint. In a collective all hosts wait for the one that hangs, so each of them writes its
    own stacks.
    """

    def __init__(self, timeout_s: float, path: Path):
        """Create a watchdog that is not yet started.

        Args:
          timeout_s: seconds without a finished step; 0: forever.
          path: file that the stacks are appended to, in an existing directory.
        """
        self._timeout_s = timeout_s
        self._path = path
        self._seen = time.monotonic()
        self._step = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to watch."""
        self._seen = time.monotonic()
        if self._timeout_s:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def alive(self, step: int) -> None:
        """Report a finished step."""
        self._step = step
        self._seen = time.monotonic()

    def pause(self) -> None:
        """Expect nothing until the next finished step is reported."""
        self._seen = time.monotonic() + _PAUSE_S

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        # At most the timeout, or a pause that begins while it waits would outlast its end.
        while not self._closed.wait(min(max(self._seen + self._timeout_s - time.monotonic(), 0.01), self._timeout_s)):
            silent = time.monotonic() - self._seen
            if silent >= self._timeout_s and self._dump(silent):
                # A hung thread cannot be joined, and may hold a lock that an orderly exit would wait for.
                os._exit(PREEMPTED)

    def _dump(self, silent: float) -> bool:
        """Write the stacks and wait a little; return whether the process is still hung then."""
        seen = self._seen
        text = (
            f"no step finished in {silent:.0f} s after step {self._step} (config.train.hang_timeout="
            f"{self._timeout_s:g}); stacks of all threads are in {self._path}"
        )
        try:
            with self._path.open("a", encoding="utf-8") as file:
                print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
            log.error("%s; exiting, to be restarted", text)
        except OSError as error:
            log.error("%s, but cannot be written: %s", text, error)
        if self._closed.wait(_LINGER_FIRST_S if is_first() else _LINGER_S) or self._seen != seen:
            log.warning("a step finished after all; continuing")
            return False
        return True
