"""How a run's time was spent, over all of its starts: ``WORKDIR/events.jsonl``, one JSON object per line, append-only.

A start writes its clock at a few points, and after a step whenever its time has grown by a hundredth, so that the time
of a killed process is known to a percent or a step. Every line has ``event``, ``start`` (index of the start),
``time`` (seconds since 1970), ``step`` (the last one done) and ``seconds``: the time of this start by cause.

    start     since the start of the process, without the causes below
    restore   reading a checkpoint
    compile   tracing and compiling the step
    data      waiting for a batch while the devices are idle
    save      saving checkpoints, as far as training waits for it
    evaluate  evaluations between steps
    step      everything else during training: the steps
    lost      work on steps that were done again, because the run continued from an earlier checkpoint
    down      between two starts; after a killed start, from its last line on

``lost`` and ``down`` follow from the lines of all starts. Goodput is the share of ``step`` in the sum of all causes,
which is the time since the first start began. It is measured on the first host: waiting for another host is ``step``.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from unihetero_jax.files import json_rows

log = logging.getLogger(__name__)

EVENTS = "events.jsonl"
CAUSES = ("step", "start", "restore", "compile", "data", "save", "evaluate")
ALL_CAUSES = (*CAUSES, "lost", "down")
# Causes that belong to the steps during which they occur.
_OF_STEPS = ("data", "save", "evaluate", "step")

# A line whenever this share of a start's time has passed since the last one, within these seconds.
_SHARE, _SHORTEST_S, _LONGEST_S = 0.01, 0.05, 60.0


@dataclass
class Account:
    """Sums over the lines of a run.

    Attributes:
      seconds: time by cause; the sum is the time from the beginning of the first start to the last line.
      starts: number of starts.
      lost_steps: steps that were done again.
      step: the last step that is done and was not lost.
      last: the last line.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ALL_CAUSES, 0.0))
    starts: int = 0
    lost_steps: int = 0
    step: int = 0
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def wall(self) -> float:
        """Total time, in seconds."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the time spent on steps that were not lost."""
        return self.seconds["step"] / self.wall if self.wall else 0.0


def account(events: Iterable[dict[str, Any]]) -> Account:
    """Add up the lines of a run, in their order."""
    found = Account()
    # Work that is not lost so far: the step that it led to, and its time by cause.
    kept: list[tuple[int, dict[str, float]]] = []
    before: dict[str, float] = {}
    for event in events:
        step, seconds = int(event["step"]), event["seconds"]
        if event["event"] == "start":
            found.starts += 1
            if found.last:
                found.seconds["down"] += max(event["time"] - found.last["time"], 0.0)
            before = {}
        spent = {cause: seconds.get(cause, 0.0) - before.get(cause, 0.0) for cause in CAUSES}
        before = seconds
        for cause, value in spent.items():
            found.seconds[cause] += value
        if event["event"] == "begin":
            # From a checkpoint whose step has its own line: the work after it is done again.
            while kept and kept[-1][0] > step:
                done, work = kept.pop()
                for cause, value in work.items():
                    found.seconds[cause] -= value
                    found.seconds["lost"] += value
                found.lost_steps += done - max(kept[-1][0] if kept else 0, step)
        elif event["event"] != "start":
            kept.append((step, {cause: spent[cause] for cause in _OF_STEPS}))
        if event["event"] != "start":
            found.step = step
        found.last = event
    return found


def read_events(workdir: Path) -> list[dict[str, Any]]:
    """Read the lines of a run, without one that a crash has cut off."""
    wanted = {"event", "start", "time", "step", "seconds"}
    events = [event for event in json_rows(workdir / EVENTS) if wanted <= event.keys()]
    return [event for event in events if isinstance(event["seconds"], dict)]


class Goodput:
    """The clock of one start: every moment of it belongs to a cause.

    If the file cannot be written, that is logged once, and the run continues without it.
    """

    _process_counted: ClassVar[bool] = False

    def __init__(self, workdir: Path | None, began: float | None = None):
        """Write the first line.

        Args:
          workdir: where the lines go; None: nowhere, as on hosts other than the first.
          began: beginning of the start, seconds since 1970; by default that of the process, unless it had one before.
        """
        self._file = None
        self._closed = False
        self._earlier: list[dict[str, Any]] = []
        self._mine: list[dict[str, Any]] = []
        if workdir is not None:
            try:
                self._earlier = read_events(workdir)
                self._file = (workdir / EVENTS).open("a+", encoding="utf-8")
                self._end_torn_line()
            except OSError as error:
                log.warning("%s: cannot be written, so goodput is not: %s", workdir / EVENTS, error.strerror or error)
        if began is None:
            began = time.time() if Goodput._process_counted else _process_began()
            Goodput._process_counted = True
        if self._earlier:
            began = max(began, self._earlier[-1]["time"])
        self._clock = time.monotonic()
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        self._step = 0
        self._number = account(self._earlier).starts + 1
        self._write("start", began)
        self._seconds["start"] = max(time.time() - began, 0.0)

    def lap(self, cause: str, event: str = "") -> None:
        """Assign the time since the last lap to a cause; with an event, also write a line."""
        now = time.monotonic()
        self._seconds[cause] += now - self._clock
        self._clock = now
        if event:
            self._write(event)

    def begin(self, step: int) -> None:
        """Record that training begins after a step."""
        self._step = step
        self.lap("restore" if step else "start", "begin")

    def done(self, step: int) -> None:
        """Record a finished step; the time since the last lap is assigned to it."""
        self.lap("step")
        self._step = step
        if self._clock >= self._next:
            self._write("steps")

    def saved(self) -> None:
        """Record a save; the time since the last lap is assigned to it."""
        self.lap("save", "save")

    def close(self, why: str) -> None:
        """End the start: ``complete``, ``stopped`` or ``failed``; only the first call counts."""
        if not self._closed:
            self._closed = True
            # The end waits for the last checkpoint.
            self.lap("save", why)
            if self._file is not None:
                self._file.close()

    def account(self) -> Account:
        """Add up all starts until now."""
        now = {"event": "now", "start": self._number, "time": time.time(), "step": self._step}
        return account([*self._earlier, *self._mine, {**now, "seconds": dict(self._seconds)}])

    def _write(self, event: str, at: float | None = None) -> None:
        self._next = self._clock + min(max(_SHARE * sum(self._seconds.values()), _SHORTEST_S), _LONGEST_S)
        line = {
            "event": event,
            "start": self._number,
            "time": time.time() if at is None else at,
            "step": self._step,
            "seconds": {cause: round(seconds, 6) for cause, seconds in self._seconds.items()},
        }
        self._mine.append(line)
        if self._file is None:
            return
        try:
            # Into the kernel's buffer: that survives this process, and does not wait for the disk.
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            log.warning("%s: cannot be written any more: %s", self._file.name, error.strerror or error)
            self._file = None

    def _end_torn_line(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        if (text := self._file.read()) and not text.endswith("\n"):
            self._file.write("\n")


def _process_began() -> float:
    """Return when this process started, seconds since 1970: its imports took time, too."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - max(up - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError):
        return time.time()


def format_account(found: Account) -> str:
    """Format an account in a line: ``goodput 83.1% of 120 s: step 100 s, …; 2 starts, 3 steps done again``."""
    parts = [f"{cause} {format_duration(seconds)}" for cause, seconds in found.seconds.items() if seconds]
    text = f"goodput {found.goodput:.1%} of {format_duration(found.wall)}: {', '.join(parts)}"
    if found.starts > 1:
        text += f"; {found.starts} starts, {found.lost_steps} steps done again"
    return text


def format_duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
