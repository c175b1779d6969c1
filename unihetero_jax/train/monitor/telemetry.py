"""A run's numbers: ``metrics.jsonl``, TensorBoard, throughput, and a progress bar or plain lines."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import numpy as np
import tqdm

if TYPE_CHECKING:
    from unihetero_jax.train.hooks import Evaluated
    from unihetero_jax.train.monitor.utilization import Work

METRICS = "metrics.jsonl"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

_FLUSH_S = 10.0

log = logging.getLogger(__name__)


class MetricsLog:
    """``metrics.jsonl``: one appended object per step; what comes from the clock is under ``timing``.

    Opening it after a restore removes the rows beyond the restored step and an incomplete last line, so that the file
    reads as if nothing had happened.
    """

    def __init__(self, path: Path, restored_step: int):
        self._drop_after(path, restored_step)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._unwritten = bytearray()
        self._reported = False

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; values that are not finite become null.

        A row that cannot be written (the disk is full) stays in memory until it can, or ``sync`` raises.
        """
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        self._unwritten += json.dumps(finite).encode() + b"\n"
        try:
            self._flush()
            self._reported = False
        except OSError as error:
            if not self._reported:
                log.error("%s: cannot be written: %s; rows are kept in memory until it can", self._path, error.strerror)
            self._reported = True

    def sync(self) -> None:
        """Write every row to disk; called before the checkpoint that covers them is committed.

        Raises:
          OSError: they cannot be written.
        """
        self._flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; rows that still cannot be written are of steps that no checkpoint has."""
        with contextlib.suppress(OSError):
            self.sync()
        self._file.close()

    def _flush(self) -> None:
        while self._unwritten:
            del self._unwritten[: self._file.write(self._unwritten)]

    @staticmethod
    def _drop_after(path: Path, step: int) -> None:
        if not path.exists():
            return
        kept = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or _step_of(line) > step:
                    break
                kept += len(line)
        if kept != path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(kept)
                os.fsync(file.fileno())


def _step_of(line: bytes) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Throughput:
    """Speed of a run since its start, and per step.

    A window is the steps since the last line of the log; at its end, ``step`` also returns quantiles of its steps'
    seconds, and the memory in use.

    Attributes:
      seconds: of all steps.
      waited: seconds of waiting for data.
      samples: number so far.
      tokens: number so far.
      window: quantiles of the last window, and the share of its time that was spent ``waiting``.
    """

    def __init__(
        self,
        every: int = 1,
        last: int = 0,
        work: Work | None = None,
        devices: int = 1,
        memory: Callable[[], dict[str, int]] = dict,
    ):
        """Start the clock.

        Args:
          every: steps per window; windows end at its multiples.
          last: the run's last step, which ends a window too.
          work: of a step, for MFU.
          devices: number of devices.
          memory: returns the memory in use, by name.
        """
        self.seconds = self.waited = self.samples = self.tokens = 0.0
        self.window: dict[str, float] = {}
        self._every, self._last_step = every, last
        self._work, self._devices, self._memory = work, devices, memory
        self._steps, self._begun, self._waited_before = array("d"), 0, 0.0
        self._last = time.perf_counter()

    def step(self, step: int, waited: float, samples: float, tokens: float) -> dict[str, float]:
        """Count a finished step; return its timing.

        Args:
          step: number of the step.
          waited: seconds until its batch was there.
          samples: number in the batch.
          tokens: number in the batch.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.seconds += seconds
        self.waited += waited
        self.samples += samples
        self.tokens += tokens
        self._steps.append(seconds)
        timing = {
            "step_seconds": seconds,
            "data_wait_seconds": waited,
            "samples_per_second": samples / seconds,
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_device": tokens / seconds / self._devices,
            "time": time.time(),
        }
        if self._work is not None:
            timing["mfu"] = self._work.utilization(seconds)
        if self.ends_window(step):
            timing |= self._end_window() | self._memory()
        return timing

    def skip(self) -> None:
        """Count the time since the last step for none."""
        self._last = time.perf_counter()

    def ends_window(self, step: int) -> bool:
        """Whether a line of the log is due."""
        return step % self._every == 0 or step == self._last_step

    def rates(self) -> tuple[float, float, float]:
        """Return samples/s, tokens/s and the share of time spent waiting for data."""
        seconds = max(self.seconds, 1e-9)
        return self.samples / seconds, self.tokens / seconds, self.waited / seconds

    @property
    def mfu(self) -> float | None:
        """MFU of all steps since the start; None where FLOPs are not counted."""
        return self._work.utilization(self.seconds / len(self._steps)) if self._work and self._steps else None

    def summary(self) -> str:
        """Format all steps since the start, at least one, in a line."""
        samples, tokens, waiting = self.rates()
        text = f"{len(self._steps)} steps: {samples:,.0f} samples/s, {tokens / self._devices:,.0f} tokens/s/device, "
        if self.mfu is not None:
            text += f"MFU {self.mfu:.1%}, "
        return f"{text}step {format_quantiles(quantiles(self._steps))} s, data wait {waiting:.1%}"

    def _end_window(self) -> dict[str, float]:
        steps = self._steps[self._begun :]
        self.window = quantiles(steps)
        self.window["waiting"] = (self.waited - self._waited_before) / sum(steps)
        self._begun, self._waited_before = len(self._steps), self.waited
        return {f"step_seconds_{name}": self.window[name] for name in QUANTILES}


def quantiles(seconds: Any) -> dict[str, float]:
    """Return median, 90%, 99% (interpolated) and maximum of some times."""
    return dict(zip(QUANTILES, np.quantile(seconds, list(QUANTILES.values())).tolist(), strict=True))


def format_quantiles(found: dict[str, float]) -> str:
    """Format quantiles: ``p50 0.321 p90 0.330 p99 0.412 max 0.500``."""
    return " ".join(f"{name} {found[name]:.3f}" for name in QUANTILES)


class Display:
    """A progress bar on a terminal; a plain line at the end of each window elsewhere."""

    def __init__(self, first: int, last: int, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._last = last
        self._bar = (
            tqdm.tqdm(total=last, initial=first, unit="step", file=self._stream, dynamic_ncols=True)
            if self._stream.isatty()
            else None
        )

    def step(self, step: int, loss: float, throughput: Throughput, suffix: str = "") -> None:
        """Show a finished step.

        Args:
          step: number of the step.
          loss: of the step.
          throughput: which has counted it.
          suffix: further text.
        """
        samples, tokens, waiting = throughput.rates()
        text = f"loss {loss:.4f}, {samples:,.0f} samples/s, {tokens:,.0f} tokens/s, data wait {waiting:.1%}{suffix}"
        if (mfu := throughput.mfu) is not None:
            text += f", MFU {mfu:.1%}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
        elif throughput.ends_window(step):
            text += f", step {format_quantiles(throughput.window)} s"
            print(f"step {step}/{self._last}: {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class Writer(Protocol):
    """A further output of a run's numbers."""

    def write(self, row: dict[str, Any]) -> None:
        """Add a row's scalars."""

    def write_evaluation(self, step: int, found: Evaluated) -> None:
        """Add an evaluation's numbers and pictures."""

    def close(self) -> None:
        """Flush and close."""


def scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield names and values of a row, those from the clock as ``timing/…``."""
    for name, value in row.items():
        if name == "timing":
            yield from ((f"timing/{part}", number) for part, number in value.items() if part != "time")
        elif name != "step":
            yield name, value


class TensorBoard:
    """TensorBoard files of the same numbers, in ``WORKDIR/tensorboard``; rows of undone steps are purged on resume.

    Written in this thread: tensorboardX's own thread ends on a full disk, and its queue would then block training.
    """

    def __init__(self, workdir: Path, restored_step: int):
        # Only where it is switched on: the import takes a while.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._path = workdir / "tensorboard"
        self._path.mkdir(parents=True, exist_ok=True)
        # Files are named by the second in which they are opened, and a run may roll back within one.
        self._file: Any = EventsWriter(str(self._path / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
        self._flushed = time.monotonic()
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(self._event(step=restored_step + 1, session_log=started))

    def write(self, row: dict[str, Any]) -> None:
        """Add the row's scalars."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars(row)]
        self._add(self._event(step=row["step"], wall_time=time.time(), summary=self._summary(value=values)))

    def write_evaluation(self, step: int, found: Evaluated) -> None:
        """Add an evaluation's numbers and pictures, below ``eval/``."""
        value = self._summary.Value
        values = [value(tag=f"eval/{name}", simple_value=number) for name, number in found.scalars.items()]
        for name, png in found.pictures.items():
            # The sizes are in the first chunk of a PNG file.
            width, height = struct.unpack(">II", png[16:24])
            image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
            values.append(value(tag=f"eval/{name}", image=image))
        self._add(self._event(step=step, wall_time=time.time(), summary=self._summary(value=values)))

    def close(self) -> None:
        """Flush and close."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _add(self, event: Any) -> None:
        if self._file is None:
            return
        try:
            self._file.write_event(event)
            if time.monotonic() - self._flushed > _FLUSH_S:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            log.error("%s: cannot be written: %s; training continues without it", self._path, error.strerror)
            self.close()
            self._file = None
