"""What a run says: ``metrics.jsonl``, TensorBoard, a progress bar or plain lines."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import tqdm

METRICS = "metrics.jsonl"


class MetricsLog:
    """``metrics.jsonl``: one object a step, appended; what came from the clock stands under ``timing``.

    Opening it after a restore removes the rows beyond the restored step and a torn last line, so that the file reads as
    if nothing had happened.
    """

    def __init__(self, path: Path, restored_step: int):
        self._drop_after(path, restored_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Until every row is on disk; called before the checkpoint that covers them is committed."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes."""
        self.sync()
        self._file.close()

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

        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=restored_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Adds the row's scalars."""
        for name, value in row.items():
            if name == "timing":
                for part, seconds in value.items():
                    if part != "time":
                        self._writer.add_scalar(f"timing/{part}", seconds, row["step"])
            elif name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()
