"""Log files of each process, in ``WORKDIR/logs``."""

from __future__ import annotations

import logging
from pathlib import Path

LOGS = "logs"


class HostLog(logging.FileHandler):
    """``WORKDIR/logs/host-00000.log``: our own messages of this process, with their time.

    Attributes:
      warnings: number of warnings and errors.
      last: the last of them.
    """

    def __init__(self, workdir: Path, process: int):
        path = log_file(workdir, process)
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.warnings, self.last = 0, ""
        logging.getLogger("unihetero_jax").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, and count it if it is a warning."""
        if record.levelno >= logging.WARNING:
            self.warnings += 1
            self.last = record.getMessage()
        super().emit(record)

    def close(self) -> None:
        """Detach and close the file."""
        logging.getLogger("unihetero_jax").removeHandler(self)
        super().close()


def log_file(workdir: Path, process: int, kind: str = "log") -> Path:
    """Return the path of a process's log, or (``kind="stacks"``) of its threads' stacks when it hung."""
    return workdir / LOGS / f"host-{process:05d}.{kind}"
