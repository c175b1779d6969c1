"""Runs a study: shared parts once, then one run after the other or several side by side, each in a process of its own.

A run with a result is never run again. One that was stopped at any moment goes on from its checkpoint, which gives what
it would have given. Several runners may share a workdir, for one study or for several: each run and each shared part
has a lock that the operating system takes back from a process that dies. ``places`` says what lies where.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from unihetero_jax.config import TOWERS, Config
from unihetero_jax.errors import UsageError
from unihetero_jax.study.declaration import Scale, Study
from unihetero_jax.study.places import Job, Place, experiment, result

log = logging.getLogger(__name__)

# Exit code of a run that was stopped and can go on, as of `unihetero train`.
_STOPPED = 75


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


def run(study: Study, given: str, place: Place, wanted: Sequence[Job], parallel: int) -> list[Job]:
    """Runs what has no result yet.

    Args:
      study: of the runs.
      given: how ``registry.find`` finds it.
      place: claimed workdir.
      wanted: which runs.
      parallel: how many at a time.

    Returns:
      The runs that failed.

    Raises:
      UsageError: a result was made by a version with other defaults, or a shared part could not be made.
    """
    configs = {job.name: experiment(study, job, place) for job in wanted}
    for job in wanted:
        place.link(study, job.arm, configs[job.name])
    open_jobs = [job for job in wanted if result(place, configs[job.name]) is None]
    log.info(
        "%s at scale %s: %d runs, %d of them done", study.name, place.scale, len(wanted), len(wanted) - len(open_jobs)
    )
    if not open_jobs:
        return []
    _share(study, given, place, [(job, configs[job.name]) for job in open_jobs])
    failed: list[Job] = []
    started, done = time.monotonic(), 0
    with ThreadPoolExecutor(parallel, thread_name_prefix="study") as pool, _Children(place) as children:
        waiting: dict[Future[int], Job] = {
            pool.submit(_one, children, given, job, place, configs[job.name]): job for job in open_jobs
        }
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                job, done = waiting.pop(future), done + 1
                code = future.result()
                if code:
                    failed.append(job)
                    log.error(
                        "%s ended with exit code %d; see %s", job.name, code, place.run(configs[job.name]) / "log"
                    )
                else:
                    left = (time.monotonic() - started) / done * len(waiting)
                    log.info("%s is done (%d of %d; about %.0f min left)", job.name, done, len(open_jobs), left / 60)
    return failed


class _Children:
    """The processes of the runs under way: none of them outlives this process's interest in it."""

    def __init__(self, place: Place) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._cache = place.compilation_cache
        self._ended = False

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended = True
        for process in list(self._running):
            process.terminate()

    def run(self, arguments: Sequence[str], log_path: Path) -> int:
        """Exit code of ``python -m unihetero_jax.study.job ARGUMENTS``; its output is added to a file."""
        if self._ended:
            return _STOPPED
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
                return process.wait()
            finally:
                self._running.discard(process)
                assert process.stdin is not None
                process.stdin.close()


def _one(children: _Children, given: str, job: Job, place: Place, config: Config) -> int:
    directory = place.run(config)
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory / ".lock"):
        if place.result(config).exists():  # another runner made it while this one waited
            return 0
        arguments = ["run", given, str(place.workdir), job.arm.name, str(job.seed)]
        return children.run(arguments, directory / "log")


def _share(study: Study, given: str, place: Place, runs: Sequence[tuple[Job, Config]]) -> None:
    """Makes datasets, towers and features, in this order, unless they are there."""
    parts: dict[Path, list[str]] = {}
    for job, config in runs:
        if config.data.root:
            parts.setdefault(Path(config.data.root), ["data", given, str(place.workdir), job.arm.name])
    used = {getattr(config.init, name) for _, config in runs for name in TOWERS}
    used |= {config.evaluate.reader for _, config in runs}
    for kind in study.towers:
        if str(place.tower(kind)) in used:
            parts[place.tower(kind)] = ["tower", given, str(place.workdir), kind]
    for job, config in runs:
        if config.data.features:
            parts.setdefault(Path(config.data.features), ["features", given, str(place.workdir), job.arm.name])
    place.shared.mkdir(exist_ok=True)
    with _lock(place.shared / ".lock"), _Children(place) as children:
        for path, arguments in parts.items():
            done = path.with_name(f"{path.name}.done")
            if done.exists() or not path.is_relative_to(place.shared):  # the user's own data are there
                continue
            log.info("making %s, which runs share", path)
            path.parent.mkdir(parents=True, exist_ok=True)
            log_path = path.with_name(f"{path.name}.log")
            if code := children.run(arguments, log_path):
                raise UsageError(f"{path} could not be made (exit code {code}); see {log_path}")
            done.touch()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds a file's lock, waiting for it; the operating system takes it from a process that dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
