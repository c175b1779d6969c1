"""Save checkpoints in the background; set damaged ones aside, and survive failed saves.

Each checkpoint holds a manifest of its files' checksums (``checksums``), written before the directory gets its final
name: a directory with a checkpoint's name is complete. The first process computes the checksums of all files, in the
background: they are on a shared disk anyway, and the others would have to be waited for. When a run continues, each
process checks a share of the files.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from unihetero_jax.checkpoint import checksums
from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import CheckpointConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.parallel import processes

BAD = "bad"

_POLL_S = 0.01
# The next checkpoint is about as large as the last one; it compresses a little differently each time.
_MARGIN = 1.05

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Saves in the background; retains the newest checkpoints and every n-th, as configured.

    An older checkpoint is removed only when a newer one is complete. A failed save is logged, counted and retried at
    the next save, up to ``max_failures`` times in a row.

    Attributes:
      found: step of the newest good checkpoint at construction; None: there was none.
      failed: number of saves that failed, or were left out because the one before them took too long.
    """

    def __init__(self, workdir: Path, config: CheckpointConfig, before_commit: Callable[[], None] = lambda: None):
        """Set damaged checkpoints aside, and those of other runs or steps.

        Args:
          workdir: of the run.
          config: what is retained, and how it is verified.
          before_commit: called in the first process before a checkpoint gets its name; what it raises prevents that.

        Raises:
          UsageError: the directory cannot be written, or none of its checkpoints is good.
        """
        self._directory = (workdir / checkpoint.CHECKPOINTS).absolute()
        self._config, self._before_commit = config, before_commit
        self._in_flight: int | None = None
        self._in_a_row = self.failed = 0
        # Orbax logs what its threads raise, with the traceback, and raises it again where it is waited for.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        try:
            if processes.is_first():
                self._directory.mkdir(parents=True, exist_ok=True)
            processes.barrier("checkpoints")
            self.found = _set_aside_bad(self._directory, config.verify)
        except OSError as error:
            raise self._error(_reason(error)) from error
        self._size = checksums.total(self._directory / str(self.found)) if self.found else 0
        self._manager: ocp.CheckpointManager | None = self._make_manager()

    def save(
        self,
        step: int,
        state: Any,
        data: Any,
        items: Mapping[str, Mapping[str, Any]],
        *,
        required: bool = False,
        obstacle: str = "",
    ) -> None:
        """Start saving a step; return once the arrays are copied, so that training can continue.

        Args:
          step: the run's step.
          state: nested dicts of arrays.
          data: the data state.
          items: JSON objects by name: ``config``, ``timers`` and others.
          required: the run ends with this step: wait for it, and fail if it cannot be written.
          obstacle: why it cannot be saved, if the caller knows a reason.

        Raises:
          UsageError: it is required and cannot be written, or too many in a row could not.
        """
        if processes.is_first():
            try:
                self._before_commit()
            except OSError as error:
                obstacle = obstacle or _reason(error)
        if not self._finish_last(step, None if required else self._config.patience):
            return
        if obstacle := _any_of_all("obstacle", obstacle or self._obstacle()):
            self._fail(step, obstacle, required)
            return
        arguments = ocp.args.Composite(
            **{name: ocp.args.JsonSave(dict(item)) for name, item in items.items()},
            state=ocp.args.StandardSave(state),
            data=ocp.args.StandardSave(data),
        )
        self._in_flight = step
        problem = ""
        try:
            if self._manager is None:
                self._manager = self._make_manager()
            self._manager.save(step, args=arguments, force=True)
        except (OSError, ValueError) as error:
            problem = _reason(error)
        if problem := _any_of_all("started", problem):
            self._fail(step, problem, required)
        elif required:
            self._finish_last(step, None, required=True)

    def settle(self, step: int) -> bool:
        """Wait for the save in flight, and count it if it failed; all processes call it.

        Returns:
          Whether there is a complete checkpoint of the step.
        """
        self._finish_last(step, None)
        return step in checkpoint.steps(self._directory.parent)

    def latest(self) -> int | None:
        """Return the newest complete checkpoint's step, after waiting for the one in flight."""
        self._wait(None)
        return max(checkpoint.steps(self._directory.parent), default=None)

    def go_back(self, before: int) -> int | None:
        """Remove the checkpoints from a step on, so that they are saved again; all processes call it.

        Returns:
          The step of the newest good one before; None, and nothing is removed, where there is none.
        """
        self._finish_last(before, None)
        older = [step for step in checkpoint.steps(self._directory.parent) if step < before]
        if not json.loads(processes.gather("older", json.dumps(older))[0]):
            return None
        self._manager = None
        if processes.is_first():
            # The newest first: whatever interrupts this leaves a run that is merely at an earlier step.
            for step in reversed(checkpoint.steps(self._directory.parent)):
                if step >= before:
                    shutil.rmtree(self._directory / str(step))
        processes.barrier("went back")
        self.found = _set_aside_bad(self._directory, self._config.verify)
        return self.found

    def close(self) -> None:
        """Wait for the save in flight, log its failure, and close."""
        problem = self._wait(None) or ""
        if problem:
            log.error("%s", self._error(problem, self._in_flight))
        elif self._manager is not None:
            self._manager.close()
        self._manager = None

    def _make_manager(self) -> ocp.CheckpointManager:
        policies: list[Any] = [preservation_policy.LatestN(self._config.keep_latest)]
        if self._config.keep_every:
            policies.append(preservation_policy.EveryNSteps(self._config.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            # Called in the first process, after all have written and before the directory gets its name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _seal(self) -> None:
        self._before_commit()
        if self._config.verify != "off":
            (written,) = self._directory.glob(f"{self._in_flight}.orbax-checkpoint-tmp*")
            self._size = checksums.write(written)

    def _finish_last(self, step: int, patience_s: float | None, required: bool = False) -> bool:
        """Finish the save in flight, if there is one; return whether another may start."""
        if self._in_flight is None:
            return True
        problem = self._wait(patience_s)
        problems = [json.loads(text) for text in processes.gather("save", json.dumps(problem))]
        last, late = self._in_flight, [number for number, text in enumerate(problems) if text is None]
        if late:
            self.failed += 1
            log.error(
                "%s: step %d is not saved: step %d is still being written after %g s (config.checkpoint.patience) by "
                "%s; training continues",
                *(self._directory, step, last, patience_s, processes.name(late[0])),
            )
            return False
        if bad := next(filter(None, problems), ""):
            self._fail(last, bad, required)
        else:
            self._in_a_row = 0
            if processes.is_first() and self._config.verify != "off":
                try:
                    checksums.complete(self._directory / str(last))
                except (OSError, ValueError) as error:
                    log.warning("%s: %s", self._directory / str(last), error)
        self._in_flight = None
        return True

    def _wait(self, patience_s: float | None) -> str | None:
        """Return why the save in flight failed here; empty: it succeeded; None: it takes longer than the patience."""
        if self._manager is None:
            return ""
        deadline = time.monotonic() + (patience_s or 0.0)
        while patience_s is not None and self._manager.is_saving_in_progress():
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_S)
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            return _reason(error)
        return ""

    def _obstacle(self) -> str:
        """Return why nothing can be written now, if that is known in advance."""
        if not processes.is_first():
            return ""
        try:
            probe = self._directory / ".probe"
            write_atomic(probe, b"\0" * 4096)
            probe.unlink()
            free = shutil.disk_usage(self._directory).free
        except OSError as error:
            return _reason(error)
        needed = int(self._size * _MARGIN)
        return f"{free:,} bytes are free, and the last one took {self._size:,}" if free < needed else ""

    def _fail(self, step: int, problem: str, required: bool) -> None:
        """Count and log a failed save, and remove what was written of it."""
        self.failed += 1
        self._in_a_row += 1
        self._in_flight = None
        # The manager still counts the failed step, and those that were to be removed for it.
        self._manager = None
        if processes.is_first():
            for part in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(part, ignore_errors=True)
        processes.barrier("failed save")
        error = self._error(problem, step)
        most = self._config.max_failures
        if required or self._in_a_row > most:
            raise error
        log.error(
            "%s; training continues, and the next save retries (%d of %d failures in a row)",
            *(error, self._in_a_row, most),
        )

    def _error(self, problem: str, step: int | None = None) -> UsageError:
        what = "the checkpoint" if step is None else f"the checkpoint of step {step}"
        newest = max(checkpoint.steps(self._directory.parent), default=None)
        rest = "" if step is None else "; there is no older one" if newest is None else f"; step {newest} is retained"
        return UsageError(f"{self._directory}: {what} cannot be written: {problem}{rest}")


def _any_of_all(topic: str, problem: str) -> str:
    """Return the first process's problem that is not empty, the same in all processes."""
    return next(filter(None, processes.gather(topic, problem)), "")


def _reason(error: Exception) -> str:
    """Reduce a full disk or a missing permission to a line; tensorstore reports them as ValueError with a number."""
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    if isinstance(error, ValueError) and "writ" not in str(error):
        raise error
    return lines[0] if lines else type(error).__name__


def _set_aside_bad(directory: Path, level: str) -> int | None:
    """Move damaged checkpoints to ``bad/``; return the step of the newest good one, None if there never was one.

    All processes call it, and each checks a share of the files, from the newest checkpoint to the first good one.

    Raises:
      UsageError: there are checkpoints, and none is good.
    """
    workdir = directory.parent
    if processes.is_first():
        complete = checkpoint.steps(workdir)
        for path in [path for path in directory.iterdir() if path.name.isdigit() and int(path.name) not in complete]:
            log.warning("%s: an incomplete checkpoint; moved to %s", path, _move(path))
    # The other processes may see an older listing than the first one.
    there: list[int] = json.loads(processes.gather("steps", json.dumps(checkpoint.steps(workdir)))[0])
    bad: dict[int, str] = {}
    for step in reversed(there):
        found = checkpoint.damage(directory / str(step), level, *processes.share()) or ""
        if not (problem := _any_of_all("checked", found)):
            break
        bad[step] = problem
    good = next((step for step in reversed(there) if step not in bad), None)
    if bad and good is None:
        problems = "; ".join(f"{step} ({problem})" for step, problem in bad.items())
        raise UsageError(
            f"{directory}: no good checkpoint among steps {problems}; restore one of them, or move {directory} away to "
            "start anew"
        )
    processes.barrier("all checked")
    if processes.is_first():
        for step, problem in bad.items():
            place = _move(directory / str(step))
            log.warning(
                "%s: damaged: %s; moved to %s, continuing from step %d", directory / str(step), problem, place, good
            )
    processes.barrier("set aside")
    return good


def _move(path: Path) -> Path:
    place = path.parent / BAD
    place.mkdir(exist_ok=True)
    number = 0
    while (target := place / (f"{path.name}.{number}" if number else path.name)).exists():
        number += 1
    return path.rename(target)
