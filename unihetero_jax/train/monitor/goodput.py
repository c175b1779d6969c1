"""Where a run's time went, over all of its starts: ``WORKDIR/events.jsonl``, one JSON object a line, only appended.

A start writes its clock at a few points, and after a step whenever a hundredth more time has passed; so a process that
is killed leaves it known to a percent or a step. Every line has ``event``, ``start`` (which one wrote it), ``time``
(seconds since 1970), ``step`` (the last one that is done) and ``seconds``: what this start has spent by cause.

    start     from the start of the process, without what has a name of its own
    restore   reading a checkpoint
    compile   tracing and compiling the step
    data      waiting for a batch while the devices have nothing to do
    save      saving checkpoints, as far as training waits for it
    step      everything else that happens while training: the steps
    lost      work of all kinds on steps that were done again, because the run went on from an earlier checkpoint
    down      between two starts; from a killed start's last line on

``lost`` and ``down`` follow from the lines of all starts. Goodput is the share of ``step`` in the sum of all causes,
which is the time since the first start began. It is the first host's view: waiting for another host is ``step``.
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
CAUSES = ("step", "start", "restore", "compile", "data", "save")
ALL_CAUSES = (*CAUSES, "lost", "down")
# What belongs to the steps during which it was spent.
_OF_STEPS = ("data", "save", "step")

# A line whenever this share of a start's time has passed since the last one, within these seconds.
_SHARE, _SHORTEST_S, _LONGEST_S = 0.01, 0.05, 60.0


@dataclass
class Account:
    """What the lines of a run add up to.

    Attributes:
      seconds: by cause; their sum is the time from the beginning of the first start to the last line.
      starts: how often the run was started.
      lost_steps: steps that were done again.
      step: the last one that is done and was not lost.
      last: the last line.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ALL_CAUSES, 0.0))
    starts: int = 0
    lost_steps: int = 0
    step: int = 0
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def wall(self) -> float:
        """Seconds of all causes."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the steps that count."""
        return self.seconds["step"] / self.wall if self.wall else 0.0


def account(events: Iterable[dict[str, Any]]) -> Account:
    """Adds up the lines of a run, in their order."""
    found = Account()
    # Work that is not lost so far: the step that it led to, and what it took.
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
            # From a checkpoint whose step has a line of its own: what was done behind it is done again.
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
    """The lines of a run; one that a crash has torn is left out."""
    wanted = {"event", "start", "time", "step", "seconds"}
    events = [event for event in json_rows(workdir / EVENTS) if wanted <= event.keys()]
    return [event for event in events if isinstance(event["seconds"], dict)]


class Goodput:
    """The clock of one start: every moment of it belongs to a cause.

    What cannot be written is said once, and the run goes on without.
    """

    _process_counted: ClassVar[bool] = False

    def __init__(self, workdir: Path | None, began: float | None = None):
        """Args:
        workdir: where the lines go; None: nowhere, as on hosts that are not the first.
        began: when the start began, seconds since 1970; by default when the process did, but for a second start in it.
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
        """Gives the time since the last lap to a cause; with an event, also writes a line."""
        now = time.monotonic()
        self._seconds[cause] += now - self._clock
        self._clock = now
        if event:
            self._write(event)

    def begin(self, step: int) -> None:
        """Training begins behind this step."""
        self._step = step
        self.lap("restore" if step else "start", "begin")

    def done(self, step: int) -> None:
        """A step is done; the time since the last lap was its."""
        self.lap("step")
        self._step = step
        if self._clock >= self._next:
            self._write("steps")

    def saved(self) -> None:
        """The last step is saved, or being saved; the time since the last lap went into that."""
        self.lap("save", "save")

    def close(self, why: str) -> None:
        """Ends the start: ``complete``, ``stopped`` or ``failed``; a second end is none."""
        if not self._closed:
            self._closed = True
            # What an ending waits for is the last checkpoint.
            self.lap("save", why)
            if self._file is not None:
                self._file.close()

    def account(self) -> Account:
        """What all starts add up to until now."""
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
            # Into the kernel's hands: that outlives this process, and waits for no disk.
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
    """When this process started, seconds since 1970: what it has imported so far took time, too."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - max(up - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError):
        return time.time()


def in_words(found: Account) -> str:
    """An account in a line: ``goodput 83.1% of 120 s: step 100 s, …; 2 starts, 3 steps done again``."""
    parts = [f"{cause} {duration(seconds)}" for cause, seconds in found.seconds.items() if seconds]
    text = f"goodput {found.goodput:.1%} of {duration(found.wall)}: {', '.join(parts)}"
    if found.starts > 1:
        text += f"; {found.starts} starts, {found.lost_steps} steps done again"
    return text


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
