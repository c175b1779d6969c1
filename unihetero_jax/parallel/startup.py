"""What every computing verb does first: how it speaks, and where compiled programs are kept."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

LOGS = "logs"


def speak() -> None:
    """Our own messages as plain lines on stderr, and of the libraries' only errors."""
    ours = logging.getLogger("unihetero_jax")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False
    for library in ("absl", "orbax", "jax"):
        logging.getLogger(library).setLevel(logging.ERROR)


class HostLog(logging.FileHandler):
    """``WORKDIR/logs/host-00000.log``: our own messages in this process, with their time; counts the warnings."""

    def __init__(self, workdir: Path, process: int):
        path = log_file(workdir, process)
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.warnings, self.last = 0, ""
        logging.getLogger("unihetero_jax").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a message."""
        if record.levelno >= logging.WARNING:
            self.warnings += 1
            self.last = record.getMessage()
        super().emit(record)

    def close(self) -> None:
        """Closes the file; later messages do not go there."""
        logging.getLogger("unihetero_jax").removeHandler(self)
        super().close()


def log_file(workdir: Path, process: int, kind: str = "log") -> Path:
    """Where a process writes its own messages, or (``kind="stacks"``) what its threads did when it hung."""
    return workdir / LOGS / f"host-{process:05d}.{kind}"


def end_with_parent(end: Callable[[], None]) -> None:
    """Calls ``end`` when the process that started this one, and holds its standard input, has ended, however it did."""

    def watch() -> None:
        # Not by `sys.stdin`: this thread would hold its lock when the interpreter ends, which then aborts.
        while os.read(0, 1):
            pass
        end()

    threading.Thread(target=watch, daemon=True).start()


def cache_compilations(workdir: Path) -> None:
    """Keeps compiled programs in the workdir, so that a second start does not compile; the environment's own wins."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compilation_cache").absolute()))
