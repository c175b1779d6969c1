"""What a run says: ``metrics.jsonl``, TensorBoard, a progress bar or plain lines."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import tqdm

METRICS = "metrics.jsonl"

log = logging.getLogger(__name__)


class MetricsLog:
    """``metrics.jsonl``: one object a step, appended; what came from the clock stands under ``timing``.

    Opening it after a restore removes the rows beyond the restored step and a torn last line, so that the file reads as
    if nothing had happened.
    """

    def __init__(self, path: Path, restored_step: int):
        self._drop_after(path, restored_step)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._unwritten = bytearray()
        self._complained = False

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; what is not finite is null there.

        What cannot be written (the disk is full) is kept until it can, or ``sync`` says so.
        """
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        self._unwritten += json.dumps(finite).encode() + b"\n"
        try:
            self._flush()
            self._complained = False
        except OSError as error:
            if not self._complained:
                log.error("%s: cannot be written: %s; rows are kept in memory until it can", self._path, error.strerror)
            self._complained = True

    def sync(self) -> None:
        """Until every row is on disk; called before the checkpoint that covers them is committed.

        Raises:
          OSError: they cannot be written.
        """
        self._flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes; rows that still cannot be written are of steps that no checkpoint has."""
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
    """Samples and tokens a second since the start, and the share of that time spent waiting for data."""

    def __init__(self) -> None:
        self.seconds = self.waited = self.samples = self.tokens = 0.0
        self._last = time.perf_counter()

    def step(self, waited: float, samples: float, tokens: float) -> dict[str, float]:
        """Counts a finished step; returns its timing."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.seconds += seconds
        self.waited += waited
        self.samples += samples
        self.tokens += tokens
        return {
            "step_seconds": seconds,
            "data_wait_seconds": waited,
            "samples_per_second": samples / seconds,
            "tokens_per_second": tokens / seconds,
            "time": time.time(),
        }

    def rates(self) -> tuple[float, float, float]:
        """Samples/s, tokens/s, share of waiting for data."""
        seconds = max(self.seconds, 1e-9)
        return self.samples / seconds, self.tokens / seconds, self.waited / seconds


class Display:
    """A progress bar on a terminal; a plain line every so many steps elsewhere."""

    def __init__(self, first: int, last: int, every: int, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._every = every
        self._last = last
        self._bar = (
            tqdm.tqdm(total=last, initial=first, unit="step", file=self._stream, dynamic_ncols=True)
            if self._stream.isatty()
            else None
        )

    def step(self, step: int, loss: float, throughput: Throughput) -> None:
        """Shows a finished step."""
        samples, tokens, waiting = throughput.rates()
        text = f"loss {loss:.4f}, {samples:,.0f} samples/s, {tokens:,.0f} tokens/s, data wait {waiting:.1%}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
        elif step % self._every == 0 or step == self._last:
            print(f"step {step}/{self._last}: {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class TensorBoard:
    """TensorBoard files of the same numbers, in ``WORKDIR/tensorboard``; rows of undone steps are purged on resume."""

    def __init__(self, workdir: Path, restored_step: int):
        from tensorboardX import SummaryWriter

        self._path = workdir / "tensorboard"
        # Room for more than a row, so that one can always be added while the writer's thread lives.
        self._writer = SummaryWriter(str(self._path), purge_step=restored_step + 1, max_queue=1000)

    def write(self, row: dict[str, Any]) -> None:
        """Adds the row's scalars, unless they cannot be written any more."""
        if self._writer is None:
            return
        # On a full disk its thread ends; the queue would then fill up, and training would wait for ever.
        if not self._writer.file_writer.event_writer._worker.is_alive():
            log.error("%s: cannot be written; training goes on without it", self._path)
            self._writer = None
            return
        for name, value in row.items():
            if name == "timing":
                for part, seconds in value.items():
                    if part != "time":
                        self._writer.add_scalar(f"timing/{part}", seconds, row["step"])
            elif name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flushes and closes."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
