"""Runs a study: shared parts once, then one run after the other or several side by side, each in a process of its own.

A run with a result is never run again. One that was stopped at any moment goes on from its checkpoint, which gives what
it would have given. Several runners may share a workdir, for one study or for several: each run and each shared part
has a lock that the operating system takes back from a process that dies. Where a file system has no locks nothing
keeps two runners apart; a job array needs none, because ``prepare`` comes before its tasks and each has a run of its
own. ``places`` says what lies where.
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

from unihetero_jax.config import TOWER_NAMES, Config
from unihetero_jax.errors import UsageError
from unihetero_jax.study.declaration import Scale, Study
from unihetero_jax.study.places import Job, Place, check_used, experiment, result

log = logging.getLogger(__name__)

# Exit code of what was stopped and can go on, as of `unihetero train`.
STOPPED = 75
_LOCK_POLL_S = 1.0
# What flock says where the file system has none: Lustre without `-o flock`, NFS without a lock service, some FUSE.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def jobs(study: Study, scale: Scale, seeds: int, only: str = "*") -> list[Job]:
    """All runs, seed by seed, so that a study that is stopped has whole seeds to compare.

    Args:
      study: whose arms.
      scale: at which.
      seeds: how many; 0, 1, ….
      only: pattern of names, as a shell has them.

    Raises:
      UsageError: no run has such a name.
    """
    everything = [Job(arm, seed) for seed in range(seeds) for arm in study.arms(scale)]
    chosen = [job for job in everything if fnmatch.fnmatchcase(job.name, only) or job.arm.name == only]
    if not chosen:
        raise UsageError(
            f"--only={only}: no run has such a name; there are {everything[0].name} … {everything[-1].name}"
        )
    return chosen


def prepare(study: Study, given: str, place: Place, wanted: Sequence[Job]) -> int:
    """Makes what the runs that have no result yet share, and no run.

    Args:
      study: of the runs.
      given: how ``registry.find`` finds it.
      place: claimed workdir.
      wanted: which runs.

    Returns:
      The exit code: 0, or that of what was stopped or killed while it was made.

    Raises:
      UsageError: as ``run``.
    """
    with _Children(place) as children:
        return _share(children, study, given, place, _open(study, place, wanted))


def run(study: Study, given: str, place: Place, wanted: Sequence[Job], parallel: int, member: int | None = None) -> int:
    """Runs what has no result yet.

    Args:
      study: of the runs.
      given: how ``registry.find`` finds it.
      place: claimed workdir.
      wanted: which runs.
      parallel: how many at a time.
      member: number of this process where several make each run together, on as many hosts; None: it is alone.

    Returns:
      The exit code: 0 when all of them are done, else the highest of theirs, as a shell counts them. So those that ask
      to be started again (75, or killed: 128 and the signal) win over those that do not (1, 2).

    Raises:
      UsageError: a result was made by a version with other defaults, data or weights have gone, or a shared part could
        not be made or, with several processes, is missing.
    """
    open_jobs = _open(study, place, wanted)
    if not open_jobs:
        return 0
    worst = 0
    started, done = time.monotonic(), 0
    with ThreadPoolExecutor(parallel, thread_name_prefix="study") as pool, _Children(place) as children:
        if member is not None:
            _find_shared(study, given, place, open_jobs)
        elif code := _share(children, study, given, place, open_jobs):
            return code
        waiting: dict[Future[int], Job] = {
            pool.submit(_one, children, given, job, place, config, member): job for job, config in open_jobs
        }
        configs = {job.name: config for job, config in open_jobs}
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                job, done = waiting.pop(future), done + 1
                code = future.result()
                if code:
                    worst = max(worst, code)
                    log.error(
                        "%s ended with exit code %d; see %s", job.name, code, place.run(configs[job.name]) / "log"
                    )
                else:
                    left = (time.monotonic() - started) / done * len(waiting)
                    log.info("%s is done (%d of %d; about %.0f min left)", job.name, done, len(open_jobs), left / 60)
    return worst


def _open(study: Study, place: Place, wanted: Sequence[Job]) -> list[tuple[Job, Config]]:
    """The runs that have no result yet; all of them become findable by their names."""
    found = []
    for job in wanted:
        config = experiment(study, job, place)
        place.link(study, job.arm, config)
        if result(place, config) is None:
            check_used(place, config)
            found.append((job, config))
    log.info("%s at scale %s: %d runs, %d of them done", study.name, place.scale, len(wanted), len(wanted) - len(found))
    return found


class _Children:
    """The processes of the runs under way: none of them outlives this process's interest in it."""

    def __init__(self, place: Place) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._cache = place.compilation_cache
        self.ended = threading.Event()

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *failure: object) -> None:
        self.ended.set()
        for process in list(self._running):
            process.terminate()

    def run(self, arguments: Sequence[str], log_path: Path) -> int:
        """Exit code of ``python -m unihetero_jax.study.job ARGUMENTS``; its output is added to a file."""
        if self.ended.is_set():
            return STOPPED
        environment = {"JAX_COMPILATION_CACHE_DIR": os.fspath(self._cache), **os.environ}
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "unihetero_jax.study.job", *arguments],
                stdin=subprocess.PIPE,  # ends with this process, however it ends; the job watches it
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            self._running.add(process)
            try:
                if self.ended.is_set():  # too late for __exit__ to see it
                    return STOPPED
                code = process.wait()
                return 128 - code if code < 0 else code
            finally:
                # Where this process was stopped, the job saves before its parent ends: what a cluster's node has left
                # then is killed.
                process.terminate()
                process.wait()
                self._running.discard(process)
                assert process.stdin is not None
                process.stdin.close()


def _one(children: _Children, given: str, job: Job, place: Place, config: Config, member: int | None) -> int:
    directory = place.run(config)
    directory.mkdir(parents=True, exist_ok=True)
    # Of several processes that make a run together the first keeps others away from it.
    with contextlib.nullcontext(True) if member else _lock(directory / ".lock", children) as held:
        if not held:
            return STOPPED
        if place.result(config).exists():  # another runner made it while this one waited
            return 0
        arguments = ["run", given, str(place.workdir), job.arm.name, str(job.seed)]
        return children.run(arguments, directory / (f"log-{member}" if member else "log"))


def _parts(study: Study, given: str, place: Place, runs: Sequence[tuple[Job, Config]]) -> dict[Path, list[str]]:
    """Datasets, towers and features that are not there, in this order: where, and the arguments of their job."""
    parts: dict[Path, list[str]] = {}
    for job, config in runs:
        if config.data.root:
            parts.setdefault(Path(config.data.root), ["data", given, str(place.workdir), job.arm.name])
    used = {getattr(config.init, name) for _, config in runs for name in TOWER_NAMES}
    used |= {config.evaluate.reader for _, config in runs}
    for kind in study.towers:
        if str(place.tower(kind)) in used:
            parts[place.tower(kind)] = ["tower", given, str(place.workdir), kind]
    for job, config in runs:
        if config.data.features:
            parts.setdefault(Path(config.data.features), ["features", given, str(place.workdir), job.arm.name])
    # What lies elsewhere is the user's own.
    return {path: arguments for path, arguments in parts.items() if _is_missing(path, place)}


def _is_missing(path: Path, place: Place) -> bool:
    return path.is_relative_to(place.shared) and not _mark(path).exists()


def _mark(path: Path) -> Path:
    """What says that a shared part is whole."""
    return path.with_name(f"{path.name}.done")


def _find_shared(study: Study, given: str, place: Place, runs: Sequence[tuple[Job, Config]]) -> None:
    if missing := list(_parts(study, given, place, runs)):
        raise UsageError(
            f"{missing[0]} is not there, and several processes cannot make it together: expected the same command "
            "with --prepare and without --index before, on one host"
        )


def _share(children: _Children, study: Study, given: str, place: Place, runs: Sequence[tuple[Job, Config]]) -> int:
    """Makes datasets, towers and features, in this order, unless they are there; the exit code of one that stopped."""
    parts = _parts(study, given, place, runs)
    if not parts:
        return 0
    place.shared.mkdir(exist_ok=True)
    with _lock(place.shared / ".lock", children):
        for path, arguments in parts.items():
            if not _is_missing(path, place):  # another runner made it while this one waited
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
            _mark(path).touch()
    return 0


@contextlib.contextmanager
def _lock(path: Path, children: _Children) -> Iterator[bool]:
    """Holds a file's lock, waiting for it; the operating system takes it from a process that dies.

    Gives False when the runner ended while it waited.
    """
    with path.open("a") as file:
        waits = False
        # Not by a blocking call, which would keep its thread, and so this process, until the other runner ends.
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
