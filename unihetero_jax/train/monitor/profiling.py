"""``jax.profiler`` traces of a few steps: of those in the config, and on SIGUSR1 of the next ones.

A trace is for TensorBoard's profile plugin or Perfetto. Each process writes its own.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax

log = logging.getLogger(__name__)

PROFILE = "profile"


class Profiler:
    """Traces steps of a run; a trace that fails is logged, and training continues."""

    def __init__(self, workdir: Path, steps: Sequence[int], after_signal: int):
        """Install the signal handler.

        Args:
          workdir: traces are written to ``WORKDIR/profile``.
          steps: first and last step to trace; empty: none.
          after_signal: number of steps to trace on SIGUSR1.
        """
        self._directory = workdir / PROFILE
        self._wanted = (steps[0], steps[1]) if steps else None
        self._after_signal = after_signal
        self._signalled = False
        self._running: tuple[int, int] | None = None
        self._previous: Any = None
        # Python handles signals in the main thread only; training in another thread has only the config's steps.
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._previous = signal.signal(signal.SIGUSR1, self._handle)

    def before(self, step: int) -> None:
        """Start a trace if one is due; call it before a step is launched."""
        if self._running is not None:
            return
        if self._signalled:
            self._signalled = False
            self._start(step, step + self._after_signal - 1)
        elif self._wanted is not None and self._wanted[0] <= step <= self._wanted[1]:
            self._start(step, self._wanted[1])
            self._wanted = None

    def after(self, step: int) -> None:
        """End the trace if it is complete; call it when a step is done on the devices."""
        if self._running is not None and step >= self._running[1]:
            self._stop(step)

    def close(self) -> None:
        """Write the running trace, and restore the signal handler."""
        if self._running is not None:
            self._stop(None)
        if self._handles:
            signal.signal(signal.SIGUSR1, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._signalled = True

    def _place(self, first: int) -> Path:
        return self._directory / f"step-{first:06d}" / f"host-{jax.process_index():05d}"

    def _start(self, first: int, last: int) -> None:
        try:
            # Tested first: the profiler reports what it cannot write only at its end.
            self._place(first).mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._place(first))
        except (OSError, RuntimeError) as error:
            log.warning("steps %d to %d are not profiled: %s", first, last, _first_line(error))
            return
        self._running = (first, last)

    def _stop(self, step: int | None) -> None:
        assert self._running is not None
        (first, last), self._running = self._running, None
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError, ValueError) as error:
            log.warning("the trace from step %d on cannot be written: %s", first, _first_line(error))
            return
        which = f"steps {first} to {last}" if step is not None else f"the steps from {first} on"
        log.info("profiled %s: tensorboard --logdir=%s", which, self._place(first))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
