"""The lock of a workdir: one training at a time writes to it.

On one host the operating system keeps it (flock), and frees it with the process, however that ends. Between hosts a
lease does: the holder touches the file every quarter of it, and one that has not for a whole lease is lost. Times are
those of the file system, which all hosts share, never of their clocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from unihetero_jax.errors import UsageError

FILE = ".lock"
LEASE_S = 60.0
# What launchers call a job by: it is the same when they start its processes again.
JOB_VARIABLES = ("UNIHETERO_JOB", "SLURM_JOB_ID")


class WorkdirLock:
    """The claim of this process on a workdir, until ``close``."""

    def __init__(self, workdir: Path, descriptor: int, holder: Mapping[str, Any]):
        self._workdir, self._descriptor, self._holder = workdir, descriptor, holder
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lock")
        self._thread.start()

    @classmethod
    def acquire(cls, workdir: Path, environment: Mapping[str, str] = os.environ) -> Self:
        """Lock a workdir, which is made if it is not there.

        A lost process of the same job (``JOB_VARIABLES``) on another host is replaced at once, any other when its lease
        has ended.

        Raises:
          UsageError: another process holds it (named, with its host and since when), or nothing can be written there.
        """
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(workdir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                raise _refused(workdir, _read(descriptor)) from None
            except OSError:  # some network file systems have no locks: the lease alone counts, on this host too
                locked = False
            holder = _read(descriptor)
            job = next((environment[name] for name in JOB_VARIABLES if environment.get(name)), "")
            elsewhere = holder and (holder.get("host") != socket.gethostname() or not locked)
            if elsewhere and not (job and holder.get("job") == job) and (left := _lease_left(workdir, descriptor)) > 0:
                raise _refused(workdir, holder, f"; if that host is lost, its claim ends in {left:.0f} s")
            mine = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
                "job": job,
                "token": uuid.uuid4().hex,
            }
            _write(descriptor, json.dumps(mine))
        except BaseException:
            os.close(descriptor)
            raise
        return cls(workdir, descriptor, mine)

    def check(self) -> None:
        """Look at the lock again.

        Raises:
          UsageError: another process has taken it, or it has been removed.
          OSError: the file cannot be read.
        """
        try:
            found = json.loads((self._workdir / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"{self._workdir / FILE} has been removed: this process ends without another save"
            ) from None
        except ValueError:  # another process is just writing
            found = {}
        if found.get("token") != self._holder["token"]:
            raise _refused(self._workdir, found, "; this process has lost its claim and ends without another save")

    def close(self) -> None:
        """Give the workdir back."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the run is over, whatever has become of the disk
            if _read(self._descriptor).get("token") == self._holder["token"]:
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)

    def _renew(self) -> None:
        while not self._closed.wait(LEASE_S / 4):
            try:
                self.check()
                os.utime(self._descriptor)
            except UsageError:  # the lease is another's now; the next save says so
                return
            except OSError:  # what a step or a save makes of the same trouble is told by them
                continue


def _read(descriptor: int) -> dict[str, Any]:
    """The holder; empty: nobody, or one that is just writing."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
    os.fsync(descriptor)


def _lease_left(workdir: Path, descriptor: int) -> float:
    """Seconds until the lease of the file ends, by the clock of the file system."""
    with tempfile.NamedTemporaryFile(dir=workdir, prefix=f"{FILE}.") as now:
        return os.fstat(descriptor).st_mtime + LEASE_S - os.fstat(now.fileno()).st_mtime


def _refused(workdir: Path, holder: Mapping[str, Any], more: str = "") -> UsageError:
    who = (
        f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        if {"pid", "host", "since"} <= holder.keys()
        else "another process"
    )
    return UsageError(
        f"--workdir={workdir}: {who}, trains there already; wait for it to end, or use another --workdir{more}"
    )
