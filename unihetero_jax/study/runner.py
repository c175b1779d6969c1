"""Run a study: shared parts once, then the runs, one or several at a time, each in a process of its own.

A run with a result is never run again. A run that was stopped at any moment continues from its checkpoint, with the
same result. Several runners may share a workdir, for one study or several: each run and each shared part has a lock
that the operating system releases when its process dies. On a file system without locks nothing separates two runners;
a job array needs none, because ``prepare`` comes before its tasks and each has its own run. ``study.workdir`` documents
the layout of the files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO

from unihetero_jax.config import Config, leaves
from unihetero_jax.config.constraints import A_PATH
from unihetero_jax.errors import UsageError
from unihetero_jax.study.definition import Scale, Study
from unihetero_jax.study.run_config import Run, check_used, run_config
from unihetero_jax.study.workdir import Workdir

log = logging.getLogger(__name__)

# Exit code of what was stopped and can continue, the same as that of `unihetero train`.
STOPPED = 75
_LOCK_POLL_S = 1.0
# Errors of flock on file systems without locks: Lustre without `-o flock`, NFS without a lock service, some FUSE.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def select_runs(study: Study, scale: Scale, seeds: int, only: str = "*") -> list[Run]:
    """List the runs of a study, seed by seed, so that a study that is stopped has whole seeds to compare.

    Args:
      study: the study.
      scale: the scale of the runs.
      seeds: number of seeds, which are 0, 1, ….
      only: name of an arm, or pattern of runs' names as in a shell.

    Raises:
      UsageError: the pattern matches no run.
    """
    everything = [Run(arm, seed) for seed in range(seeds) for arm in study.arms(scale)]
    chosen = [run for run in everything if fnmatch.fnmatchcase(run.name, only) or run.arm.name == only]
    if not chosen:
        raise UsageError(
            f"--only={only}: no run has such a name; there are {everything[0].name} … {everything[-1].name}"
        )
    return chosen


def prepare(study: Study, given: str, workdir: Workdir, runs: Sequence[Run]) -> int:
    """Make what the runs without a result share, but start none of them.

    Args:
      study: the study.
      given: the name or path that ``registry.find`` finds the study by.
      workdir: the workdir, saved.
      runs: the selected runs.

    Returns:
      The exit code: 0, or that of a shared part's process that was stopped or killed.

    Raises:
      UsageError: for the reasons that ``run`` has.
    """
    with _Children(workdir) as children:
        return _share(children, study, given, workdir, _missing(study, workdir, runs))


def run(
    study: Study, given: str, workdir: Workdir, runs: Sequence[Run], parallel: int, member: int | None = None
) -> int:
    """Start the runs that have no result.

    Args:
      study: the study.
      given: the name or path that ``registry.find`` finds the study by.
      workdir: the workdir, saved.
      runs: the selected runs.
      parallel: number of runs at a time.
      member: number of this process, where the processes of several hosts make each run together; else None.

    Returns:
      The exit code: 0 when all runs are done, else the highest of theirs, as a shell counts them. So codes that ask to
      be started again (75, or killed: 128 plus the signal) take precedence over those that do not (1, 2).

    Raises:
      UsageError: a version with other defaults made a result, data or weights no longer exist, or a shared part could
        not be made or, with several processes, is missing.
    """
    missing = _missing(study, workdir, runs)
    if not missing:
        return 0
    worst = 0
    started, done = time.monotonic(), 0
    with ThreadPoolExecutor(parallel, thread_name_prefix="study") as pool, _Children(workdir) as children:
        if member is not None:
            _check_shared(study, given, workdir, missing)
        elif code := _share(children, study, given, workdir, missing):
            return code
        waiting: dict[Future[int], tuple[Run, Path]] = {
            pool.submit(_run_one, children, given, run, workdir, config, member): (run, workdir.run(config))
            for run, config in missing
        }
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                (run, directory), done = waiting.pop(future), done + 1
                code = future.result()
                if code:
                    worst = max(worst, code)
                    log.error("%s ended with exit code %d; see %s", run.name, code, directory / "log")
                else:
                    left = (time.monotonic() - started) / done * len(waiting)
                    log.info("%s is done (%d of %d; about %.0f min left)", run.name, done, len(missing), left / 60)
    return worst


def _missing(study: Study, workdir: Workdir, runs: Sequence[Run]) -> list[tuple[Run, Config]]:
    """Return the runs without a result; link the names of all of them to their directories."""
    found = []
    for run in runs:
        config = run_config(study, run, workdir)
        workdir.link(study, run.arm, config)
        if workdir.result(config) is None:
            check_used(workdir, config)
            found.append((run, config))
    log.info("%s at scale %s: %d runs, %d of them done", study.name, workdir.scale, len(runs), len(runs) - len(found))
    return found


class _Children:
    """The processes of current runs; they end with this context."""

    def __init__(self, workdir: Workdir) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._cache = workdir.compilation_cache
        self.ended = threading.Event()

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *failure: object) -> None:
        self.ended.set()
        for process in list(self._running):
            process.terminate()

    def run(self, arguments: Sequence[str], log_path: Path) -> int:
        """Run ``python -m unihetero_jax.study.worker ARGUMENTS``; append its output to a file, return its exit code."""
        if self.ended.is_set():
            return STOPPED
        environment = {"JAX_COMPILATION_CACHE_DIR": os.fspath(self._cache), **os.environ}
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "unihetero_jax.study.worker", *arguments],
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends; the worker watches it
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            self._running.add(process)
            try:
                if self.ended.is_set():  # too late for __exit__ to terminate it
                    return STOPPED
                code = process.wait()
                return 128 - code if code < 0 else code
            finally:
                # Where this process was stopped, the worker saves before its parent ends: a cluster kills whatever
                # processes a job leaves behind.
                process.terminate()
                process.wait()
                self._running.discard(process)
                assert process.stdin is not None
                process.stdin.close()


def _run_one(children: _Children, given: str, run: Run, workdir: Workdir, config: Config, member: int | None) -> int:
    directory = workdir.run(config)
    directory.mkdir(parents=True, exist_ok=True)
    # Of several processes that make a run together the first holds its lock.
    with contextlib.nullcontext(True) if member else _lock(directory / ".lock", children) as locked:
        if not locked:
            return STOPPED
        if workdir.result_path(config).exists():  # another runner made it while this one waited
            return 0
        arguments = ["run", given, str(workdir.path), run.arm.name, str(run.seed)]
        return children.run(arguments, directory / (f"log-{member}" if member else "log"))


def _shared_parts(
    study: Study, given: str, workdir: Workdir, runs: Sequence[tuple[Run, Config]]
) -> dict[Path, list[str]]:
    """Return the arguments of the workers that make missing datasets, towers and features, by path, in this order."""
    parts: dict[Path, list[str]] = {}
    for run, config in runs:
        if config.data.root:
            parts.setdefault(Path(config.data.root), ["data", given, str(workdir.path), run.arm.name])
    used = {value for _, config in runs for _, field, value in leaves(config) if field.bound is A_PATH}
    for kind in study.towers:
        if str(workdir.tower(kind)) in used:
            parts[workdir.tower(kind)] = ["tower", given, str(workdir.path), kind]
    for run, config in runs:
        if config.data.features:
            parts.setdefault(Path(config.data.features), ["features", given, str(workdir.path), run.arm.name])
    return {path: arguments for path, arguments in parts.items() if _is_missing(path, workdir)}


def _is_missing(path: Path, workdir: Workdir) -> bool:
    # Paths elsewhere are the user's own.
    return path.is_relative_to(workdir.shared) and not _done_mark(path).exists()


def _done_mark(path: Path) -> Path:
    """Return the file whose presence says that a shared part is complete."""
    return path.with_name(f"{path.name}.done")


def _check_shared(study: Study, given: str, workdir: Workdir, runs: Sequence[tuple[Run, Config]]) -> None:
    if missing := list(_shared_parts(study, given, workdir, runs)):
        raise UsageError(
            f"{missing[0]} is missing, and several processes cannot make it together: expected the same command "
            "with --prepare and without --index before, on one host"
        )


def _share(children: _Children, study: Study, given: str, workdir: Workdir, runs: Sequence[tuple[Run, Config]]) -> int:
    """Make missing datasets, towers and features, in this order; return the exit code of one that was stopped."""
    parts = _shared_parts(study, given, workdir, runs)
    if not parts:
        return 0
    workdir.shared.mkdir(exist_ok=True)
    with _lock(workdir.shared / ".lock", children):
        for path, arguments in parts.items():
            if not _is_missing(path, workdir):  # another runner made it while this one waited
                continue
            log.info("making %s, which runs share", path)
            path.parent.mkdir(parents=True, exist_ok=True)
            log_path = path.with_name(f"{path.name}.log")
            code = children.run(arguments, log_path)
            if code >= STOPPED:
                log.error("making %s ended with exit code %d; see %s", path, code, log_path)
                return code
            if code:
                raise UsageError(f"{path} could not be made (exit code {code}); see {log_path}")
            _done_mark(path).touch()
    return 0


@contextlib.contextmanager
def _lock(path: Path, children: _Children) -> Iterator[bool]:
    """Wait for a file's lock and hold it; the operating system releases it when the process dies.

    Yields:
      Whether it is locked; False when the runner ended while it waited.
    """
    with path.open("a") as file:
        waits = False
        # A blocking call would keep its thread, and so this process, until the other runner ends.
        while not _try_lock(file):
            if not waits:
                log.info("another runner is at %s; waiting for it", path.parent)
            waits = True
            if children.ended.wait(_LOCK_POLL_S):
                yield False
                return
        yield True


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: no locks on this file system (%s); start nothing twice", file.name, error.strerror)
    return True
