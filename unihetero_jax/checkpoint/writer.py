"""Saving checkpoints in the background, and what becomes of those that are damaged or cannot be written.

Each checkpoint holds a manifest of its files' checksums (``checksums``), written before the directory gets its name:
what has a checkpoint's name is whole. The first process reads and sums up the files of all of them, in the background:
they are on a shared disk anyway, and the others would have to be waited for. When a run goes on, all processes check a
share each.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from unihetero_jax.checkpoint import checksums
from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import CheckpointConfig, RunConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.parallel import processes

BAD = "bad"

_POLL_S = 0.01
# What was written last time is about what the next checkpoint takes; it compresses a little differently each time.
_ROOM = 1.05

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Saves in the background; keeps the newest checkpoints and every n-th, as configured.

    An older checkpoint is removed only when a newer one is whole. What cannot be saved is said, counted (``failed``)
    and tried again at the next save, up to ``max_failures`` times in a row.

    Attributes:
      found: step of the newest good checkpoint when the writer was made; None: there was none.
      failed: how many saves could not be written, or were left out because the one before them took too long.
    """

    def __init__(self, workdir: Path, config: CheckpointConfig):
        """Sets aside what is no good checkpoint.

        Raises:
          UsageError: the directory cannot be written, or of its checkpoints none is good.
        """
        self._directory = (workdir / checkpoint.CHECKPOINTS).absolute()
        self._config = config
        self._in_flight: int | None = None
        self._in_a_row = self.failed = 0
        # Orbax logs what its threads raise, traceback and all, and raises it again where it is waited for.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        try:
            if processes.is_first():
                self._directory.mkdir(parents=True, exist_ok=True)
            processes.barrier("checkpoints")
            self.found = _set_aside_bad(self._directory, config.verify)
        except OSError as error:
            raise self._cannot(_reason(error)) from error
        self._size = checksums.total(self._directory / str(self.found)) if self.found else 0
        self._manager: ocp.CheckpointManager | None = self._make_manager()

    def save(
        self,
        step: int,
        state: Any,
        data: Any,
        config: RunConfig,
        timers: Mapping[str, float],
        besides: Mapping[str, Mapping[str, Any]] | None = None,
        required: bool = False,
        obstacle: str = "",
    ) -> None:
        """Starts saving a step; returns once the arrays are copied, so that training may go on.

        Args:
          step: of the run.
          state: nested dicts of arrays.
          data: the data state.
          config: of the run.
          timers: seconds by name.
          besides: further items of JSON: ``base``, what the state is to be completed with, if it is not whole.
          required: the run ends with this one: it is waited for, and it has to succeed.
          obstacle: why it cannot be saved, where the caller knows already.

        Raises:
          UsageError: it is required and cannot be written, or too many in a row could not.
        """
        if not self._end_last(step, None if required else self._config.patience):
            return
        if obstacle := self._agreed("obstacle", obstacle or self._obstacle()):
            self._fail(step, obstacle, required)
            return
        items = ocp.args.Composite(
            **{name: ocp.args.JsonSave(dict(item)) for name, item in (besides or {}).items()},
            state=ocp.args.StandardSave(state),
            data=ocp.args.StandardSave(data),
            config=ocp.args.JsonSave(config.to_dict()),
            timers=ocp.args.JsonSave(dict(timers)),
        )
        self._in_flight = step
        problem = ""
        try:
            if self._manager is None:
                self._manager = self._make_manager()
            self._manager.save(step, args=items, force=True)
        except (OSError, ValueError) as error:
            problem = _reason(error)
        if problem := self._agreed("started", problem):
            self._fail(step, problem, required)
        elif required:
            self._end_last(step, None, required=True)

    def latest(self) -> int | None:
        """The newest complete checkpoint's step, after what is being written is."""
        self._wait(None)
        return max(checkpoint.steps(self._directory.parent), default=None)

    def go_back(self, before: int) -> int | None:
        """Removes the checkpoints from a step on, so that they are saved anew; all processes call it.

        Returns:
          The step of the newest good one before; None, and nothing is removed, where there is none.
        """
        self._end_last(before, None)
        older = [step for step in checkpoint.steps(self._directory.parent) if step < before]
        if not json.loads(processes.gather("older", json.dumps(older))[0]):
            return None
        self._manager = None
        if processes.is_first():
            # The newest first: whoever is stopped in between finds a run that had not come so far yet.
            for step in reversed(checkpoint.steps(self._directory.parent)):
                if step >= before:
                    shutil.rmtree(self._directory / str(step))
        processes.barrier("went back")
        self.found = _set_aside_bad(self._directory, self._config.verify)
        return self.found

    def close(self) -> None:
        """Waits for what is being written, says if that failed, and closes."""
        problem = self._wait(None) or ""
        if problem:
            log.error("%s", self._cannot(problem, self._in_flight))
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
            # Called by the first process, when all have written and before the directory gets its name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _seal(self) -> None:
        if self._config.verify != "off":
            (written,) = self._directory.glob(f"{self._in_flight}.orbax-checkpoint-tmp*")
            self._size = checksums.write(written)

    def _end_last(self, step: int, patience_s: float | None, required: bool = False) -> bool:
        """Ends the save that is in flight, if there is one; whether another may begin."""
        if self._in_flight is None:
            return True
        problem = self._wait(patience_s)
        said = [json.loads(text) for text in processes.gather("save", json.dumps(problem))]
        last, late = self._in_flight, [number for number, text in enumerate(said) if text is None]
        if late:
            self.failed += 1
            log.error(
                "%s: step %d is not saved: step %d is still being written after %g s (config.checkpoint.patience) by "
                "%s; training goes on",
                *(self._directory, step, last, patience_s, processes.name(late[0])),
            )
            return False
        if bad := next((text for text in said if text), ""):
            self._fail(last, bad, required)
        elif processes.is_first() and self._config.verify != "off":
            try:
                checksums.complete(self._directory / str(last))
            except (OSError, ValueError) as error:
                log.warning("%s: %s", self._directory / str(last), error)
        if not bad:
            self._in_a_row = 0
        self._in_flight = None
        return True

    def _wait(self, patience_s: float | None) -> str | None:
        """Why the save in flight failed here; empty when it did not; None when it takes longer than that."""
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
        """Why nothing can be written now, as far as it can be told beforehand."""
        if not processes.is_first():
            return ""
        try:
            probe = self._directory / ".probe"
            write_atomic(probe, b"\0" * 4096)
            probe.unlink()
            free = shutil.disk_usage(self._directory).free
        except OSError as error:
            return _reason(error)
        needed = int(self._size * _ROOM)
        return f"{free:,} bytes are free, and the last one took {self._size:,}" if free < needed else ""

    def _agreed(self, topic: str, problem: str) -> str:
        """What one of the processes has, in all of them."""
        return next(filter(None, processes.gather(topic, problem)), "")

    def _fail(self, step: int, problem: str, required: bool) -> None:
        """Counts, says and cleans up."""
        self.failed += 1
        self._in_a_row += 1
        self._in_flight = None
        # It still counts the failed step and those that were to be removed for it.
        self._manager = None
        if processes.is_first():
            for part in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(part, ignore_errors=True)
        processes.barrier("failed save")
        error = self._cannot(problem, step)
        most = self._config.max_failures
        if required or self._in_a_row > most:
            raise error
        log.error(
            "%s; training goes on, and the next save tries again (%d of %d failures in a row)",
            *(error, self._in_a_row, most),
        )

    def _cannot(self, problem: str, step: int | None = None) -> UsageError:
        what = "the checkpoint" if step is None else f"the checkpoint of step {step}"
        kept = max(checkpoint.steps(self._directory.parent), default=None)
        rest = "" if step is None else "; there is no older one" if kept is None else f"; step {kept} stays"
        return UsageError(f"{self._directory}: {what} cannot be written: {problem}{rest}")


def _reason(error: Exception) -> str:
    """A full disk or a missing permission in a line; tensorstore reports them as ValueError, and their number."""
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    if isinstance(error, ValueError) and "writ" not in str(error):
        raise error
    return lines[0] if lines else type(error).__name__


def _set_aside_bad(directory: Path, level: str) -> int | None:
    """Moves what is no good checkpoint to ``bad/``; the step of the newest good one, None when there never was one.

    All processes call it, and each looks at a share of the files. Only what is newer than the newest good one is looked
    at.

    Raises:
      UsageError: there are checkpoints, and none is good.
    """
    workdir = directory.parent
    unfinished = []
    if processes.is_first():
        whole = checkpoint.steps(workdir)
        unfinished = [path for path in directory.iterdir() if path.name.isdigit() and int(path.name) not in whole]
        for path in unfinished:
            log.warning("%s: an incomplete checkpoint; moved to %s", path, _move(path))
    # What the others list may be older than what the first one sees.
    there: list[int] = json.loads(processes.gather("steps", json.dumps(checkpoint.steps(workdir)))[0])
    bad: dict[int, str] = {}
    for step in reversed(there):
        share = processes.share()
        found = processes.gather("checked", checkpoint.damage(directory / str(step), level, *share) or "")
        if not (problem := next(filter(None, found), "")):
            break
        bad[step] = problem
    good = next((step for step in reversed(there) if step not in bad), None)
    if bad and good is None:
        said = "; ".join(f"{step} ({problem})" for step, problem in bad.items())
        raise UsageError(
            f"{directory}: no good checkpoint among steps {said}; restore one of them, or move {directory} away to "
            "start anew"
        )
    processes.barrier("looked")
    if processes.is_first():
        for step, problem in bad.items():
            place = _move(directory / str(step))
            log.warning(
                "%s: damaged: %s; moved to %s, going on from step %d", directory / str(step), problem, place, good
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
