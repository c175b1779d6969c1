"""``unihetero bench --suite``: one table of what the stack does on the devices that are here, within a few minutes.

Rows are measured by a process of its own (``run.benchmark_worker``), so that a row which is killed, crashes or hangs is
a row of the table. That process lives until a row fails: starting one takes some ten seconds with an accelerator, a
third of a row, and running out of memory leaves it usable. This process never holds the accelerator.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from unihetero_jax.data.packing.processes import child_environment
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.parallel import environment
from unihetero_jax.parallel.startup import set_up_logging
from unihetero_jax.run.benchmark_rows import Row, matrix, scale_of, variants
from unihetero_jax.run.benchmark_table import format_row, format_suite
from unihetero_jax.run.benchmark_worker import FAILED, MEASURED, OUT_OF_MEMORY

log = logging.getLogger(__name__)

NOT_REACHED, NOT_FINISHED = "not reached in time", "not finished in time"
# (seconds left, name, arguments) → an answer of the worker.
Ask = Callable[..., dict[str, Any]]
# Batch sizes that are tried in a row, each half of the one before.
_TRIES = 3


class Worker:
    """The process that measures, started when it is first asked and again after it has failed.

    Args:
      folder: for its log, and for the programs that it compiles: rows of one model have their initialization in common.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, seconds: float, name: str, *arguments: Any) -> dict[str, Any]:
        """Return the answer to a request; that the process has died, or has not answered in time, is one too.

        Args:
          seconds: how long to wait.
          name: what to measure, in ``benchmark_worker``.
          *arguments: of that.
        """
        if self._process is None:
            self._start()
        try:
            self._connection.send((name, *arguments))
            if not self._connection.poll(max(seconds, 0)):
                self.close()
                return {"status": NOT_FINISHED}
            found: dict[str, Any] = self._connection.recv()
        except (EOFError, OSError):
            found = {"status": FAILED, "note": self._cause_of_death()}
        if found["status"] == FAILED:
            # After some errors of CUDA every later call fails.
            self.close()
        return found

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._connection.close()
            self._process = None

    def _start(self) -> None:
        variables = child_environment()
        # By default JAX takes three quarters of a GPU.
        variables.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
        variables.setdefault("JAX_COMPILATION_CACHE_DIR", str(self._folder / "programs"))
        variables.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        self._connection, other = Pipe()
        with other, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "unihetero_jax.run.benchmark_worker", str(other.fileno())],
                env=variables,
                # Nothing is written to it. It closes when this process ends, however it does, and the worker ends then.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[other.fileno()],
            )

    @property
    def _log(self) -> Path:
        return self._folder / "worker.log"

    def _cause_of_death(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        if code is not None and code < 0:
            killed = "; was the machine's memory used up?" if code == -signal.SIGKILL else ""
            return f"the process was ended by {signal.Signals(-code).name}{killed}"
        last = self._log.read_text(encoding="utf-8", errors="replace").split("\n")[-2:]
        return f"the process ended with exit code {code}: {' '.join(last).strip()}"


def bench_suite(out: str | Path | None = None, *, minutes: float = 8.0, steps: int = 10) -> dict[str, Any]:
    """Measure the stack on the devices that are here; print a table.

    On accelerators, at about 1B parameters: each attention implementation with each remat policy; with the best of
    them each set of losses, and 0.5B and 3B. Rows of 4,096 packed slots in bf16. On CPUs the same at a tiny size.
    The input pipeline is measured beside it, and each row has what ``plan`` predicts for it. Call it from a process
    that does not use the accelerator.

    Args:
      out: the folder that gets ``suite.json`` and ``suite.md``, both anew after each row.
      minutes: after which it ends. Rows that were not reached say so.
      steps: number of steps to time per row.

    Returns:
      The result, as ``suite.json`` stores it: ``device``, ``input`` and ``rows``, each with a ``status``. Times in
      seconds, memory in bytes per device.

    Raises:
      UsageError: the devices cannot be used, ``steps`` or ``minutes`` is not positive, or the job has several
        processes.
    """
    deadline = time.monotonic() + 60 * minutes
    if steps < 1:
        raise UsageError(f"--steps={steps}: expected 1 or more")
    if not 0 < minutes < float("inf"):
        raise UsageError(f"--minutes={minutes}: expected a time above 0, such as 8")
    if (job := environment.find()) is not None and job.count > 1:
        raise UsageError(f"--suite measures the devices of one process, and this job has {job.count}")
    set_up_logging()
    with tempfile.TemporaryDirectory(prefix="unihetero-suite-") as folder:
        worker = Worker(Path(folder))
        try:
            suite = _Suite(worker.ask, deadline, steps, None if out is None else Path(out))
            suite.measure(Path(folder))
        finally:
            worker.close()
    print(format_suite(suite.found), end="")
    return suite.found


class _Suite:
    """The measurements in their order, the most important first.

    Attributes:
      found: the result so far.
    """

    def __init__(self, ask: Ask, deadline: float, steps: int, out: Path | None):
        self._ask, self._deadline, self._steps, self._out = ask, deadline, steps, out
        self._begun = time.monotonic()
        self.found: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "steps": steps,
            "device": {},
            "input": {},
            "rows": [],
        }

    def measure(self, folder: Path) -> None:
        """Measure everything that there is time for.

        Args:
          folder: for the dataset of the input pipeline.

        Raises:
          UsageError: the devices cannot be used.
        """
        device = self._ask(self._left, "device")
        if device["status"] != MEASURED:
            raise UsageError(f"the devices here cannot be used: {device.get('note', device['status'])}")
        self.found["device"] = device
        scale = scale_of(device["platform"])
        first, *others = matrix(device["attention"], scale)
        self._add(first)
        self.found["input"] = self._ask(self._left, "input", first, folder / "data")
        log.info("input pipeline: %s", self.found["input"]["status"])
        for row in others:
            self._add(row)
        for row in variants(self._best(first), scale):
            self._add(row)

    @property
    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _add(self, row: Row) -> None:
        started = time.monotonic()
        found = {**asdict(row), **self._measured(row), "seconds": time.monotonic() - started}
        self.found["rows"].append(found)
        self.found["seconds"] = time.monotonic() - self._begun
        log.info("%s", format_row(found))
        if self._out is not None:
            self._out.mkdir(parents=True, exist_ok=True)
            write_atomic(self._out / "suite.json", json.dumps(self.found, indent=2) + "\n")
            write_atomic(self._out / "suite.md", format_suite(self.found))

    def _measured(self, row: Row) -> dict[str, Any]:
        """Measure a row if there is time for it, with smaller batches where it runs out of memory."""
        taken = [entry["seconds"] for entry in self.found["rows"] if entry["status"] != NOT_REACHED]
        if self._left <= (statistics.median(taken) if taken else 0):
            return {"status": NOT_REACHED}
        tried: list[str] = []
        rows: int | None = None
        for _ in range(_TRIES):
            found = self._ask(self._left, "row", row, rows, self._steps, self.found["device"]["matmul_flops"])
            if found["status"] != OUT_OF_MEMORY:
                break
            rows = found.get("rows_per_device", 1)
            tried.append(f"out of memory at {rows} rows per device: {found['note']}")
            if rows == 1:
                break
            rows //= 2
        return {**found, "note": "; ".join([*tried, found["note"]] if found["status"] == FAILED else tried)} | (
            {"mfu_of_peak": self._of_peak(found)} if found["status"] == MEASURED else {}
        )

    def _of_peak(self, found: dict[str, Any]) -> float | None:
        device = self.found["device"]
        return device["peak_flops"] and found["mfu_of_matmul"] * device["matmul_flops"] / device["peak_flops"]

    def _best(self, default: Row) -> Row:
        """Return the row with the most tokens/s so far."""
        measured = [row for row in self.found["rows"] if row["status"] == MEASURED]
        if not measured:
            return default
        best = max(measured, key=lambda row: row["tokens_per_second_per_device"])
        return replace(default, attention=best["attention"], remat=best["remat"])
