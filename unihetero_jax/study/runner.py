"""Runs a study: shared parts once, then one run after the other or several side by side, each in a process of its own.

    WORKDIR/study.json                    which study this is, at which scale
    WORKDIR/shared/data/NAME              a dataset: images, pixels a side, digest of what else makes it
    WORKDIR/shared/towers/KIND            a small tower (``unihetero towers train``)
    WORKDIR/shared/compilation_cache      compiled programs: arms that differ in data or seed share them
    WORKDIR/arms/ARM/seed-N/run           the workdir of an ordinary training
    WORKDIR/arms/ARM/seed-N/result.json   what it gave; written last, whole or not at all
    WORKDIR/arms/ARM/seed-N/log           what it said

A run with a result is never run again. One that was stopped at any moment goes on from its checkpoint, which gives what
it would have given. Several runners may share a workdir: each run and each shared part has a lock that the operating
system takes back from a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unihetero_jax.config import Config, difference, resolve
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.study.declaration import TOWER_OF, Arm, Scale, Study

log = logging.getLogger(__name__)

STUDY = "study.json"
RESULT = "result.json"
# Exit code of a run that was stopped and can go on, as of `unihetero train`.
_STOPPED = 75


@dataclass(frozen=True)
class Job:
    """A run of a study: an arm with a seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """As ``--only`` matches it and messages say it."""
        return f"{self.arm.name}/seed-{self.seed}"

    def place(self, workdir: Path) -> Path:
        """The directory of the run."""
        return workdir / "arms" / self.arm.name / f"seed-{self.seed}"


def jobs(study: Study, seeds: int, only: str = "*") -> list[Job]:
    """All runs, seed by seed, so that a study that is stopped has whole seeds to compare.

    Args:
      study: whose arms.
      seeds: how many; 0, 1, ….
      only: pattern of names, as a shell has them.

    Raises:
      UsageError: no run has such a name.
    """
    everything = [Job(arm, seed) for seed in range(seeds) for arm in study.arms()]
    chosen = [job for job in everything if fnmatch.fnmatchcase(job.name, only) or job.arm.name == only]
    if not chosen:
        raise UsageError(
            f"--only={only}: no run has such a name; there are {everything[0].name} … {everything[-1].name}"
        )
    return chosen


def claim(study: Study, workdir: Path, scale: Scale) -> None:
    """Makes a workdir this study's; refuses that of another study or scale.

    Raises:
      UsageError: the workdir belongs to another one, or cannot be written.
    """
    mine = {"study": study.name, "scale": scale}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with _lock(workdir / ".lock"):
            if (workdir / STUDY).exists():
                if (found := opened(workdir)) != mine:
                    raise UsageError(
                        f"{workdir} belongs to study {found['study']} at scale {found['scale']}; expected "
                        f"{study.name} at {scale}: use another --workdir"
                    )
            else:
                write_atomic(workdir / STUDY, json.dumps(mine) + "\n")
    except OSError as error:
        raise UsageError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error


def opened(workdir: Path) -> dict[str, str]:
    """``study`` and ``scale`` of a workdir.

    Raises:
      UsageError: it is none of a study.
    """
    try:
        values = json.loads((workdir / STUDY).read_text(encoding="utf-8"))
        return {"study": values["study"], "scale": values["scale"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{workdir}: no workdir of `unihetero study run` ({STUDY}: {error})") from error


def experiment(study: Study, job: Job, workdir: Path, scale: Scale) -> Config:
    """The config of a run: that of its arm, with the seed and with the shared data and towers.

    Raises:
      UsageError: the study's experiment is no valid config.
    """
    values = study.experiment(job.arm.levels, scale)
    values.train.seed = job.seed
    if not values.data.sources:
        values.data.root = str(data_place(workdir, values.data.image_size, values.data.smart_watch.to_dict()))
    for name in TOWER_OF:
        section = getattr(values.model, name)
        used = name != "generation_tower" or not values.model.same_tower
        if used and section.kind in study.towers:
            values.init[name] = str(tower_place(workdir, section.kind))
    values.evaluate.at_end = True
    values.logging.tensorboard = False
    return resolve(values)


def data_place(workdir: Path, image_size: int, made_of: Mapping[str, Any]) -> Path:
    """Where the Smart Watch dataset of these settings is, for all arms that have the same."""
    digest = hashlib.sha256(json.dumps([image_size, made_of], sort_keys=True).encode()).hexdigest()[:8]
    return (workdir / "shared" / "data" / f"{made_of['num_images']}-{image_size}px-{digest}").absolute()


def tower_place(workdir: Path, kind: str) -> Path:
    """Where a small tower of the study is."""
    return (workdir / "shared" / "towers" / kind).absolute()


def result(job: Job, workdir: Path, config: Config) -> dict[str, Any] | None:
    """What a run gave; None if it has not ended.

    Raises:
      UsageError: it was made with another config than the study now has.
    """
    path = job.place(workdir) / RESULT
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if changed := difference(found["config"], json.loads(json.dumps(config.to_dict()))):
        raise UsageError(
            f"{path} was made with another config (differing: {', '.join(changed[:5])}); remove {path.parent} to run "
            "it again, or use another --workdir"
        )
    return found


def run(study: Study, given: str, workdir: Path, scale: Scale, wanted: Sequence[Job], parallel: int) -> list[Job]:
    """Runs what has no result yet.

    Args:
      study: of the runs.
      given: how ``registry.find`` finds it.
      workdir: of the study.
      scale: of the experiments.
      wanted: which runs.
      parallel: how many at a time.

    Returns:
      The runs that failed.

    Raises:
      UsageError: the workdir or a result in it belongs to something else, or a shared part could not be made.
    """
    claim(study, workdir, scale)
    configs = {job.name: experiment(study, job, workdir, scale) for job in wanted}
    open_jobs = [job for job in wanted if result(job, workdir, configs[job.name]) is None]
    log.info("%s at scale %s: %d runs, %d of them done", study.name, scale, len(wanted), len(wanted) - len(open_jobs))
    if not open_jobs:
        return []
    _share(study, given, workdir, scale, {configs[job.name].data.root: job for job in reversed(open_jobs)})
    failed: list[Job] = []
    started, done = time.monotonic(), 0
    with ThreadPoolExecutor(parallel, thread_name_prefix="study") as pool, _Children() as children:
        waiting: dict[Future[int], Job] = {
            pool.submit(_one, children, given, job, scale, workdir): job for job in open_jobs
        }
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                job, done = waiting.pop(future), done + 1
                code = future.result()
                if code:
                    failed.append(job)
                    log.error("%s ended with exit code %d; see %s", job.name, code, job.place(workdir) / "log")
                else:
                    left = (time.monotonic() - started) / done * len(waiting)
                    log.info("%s is done (%d of %d; about %.0f min left)", job.name, done, len(open_jobs), left / 60)
    return failed


class _Children:
    """The processes of the runs under way: none of them outlives this process's interest in it."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended = True
        for process in list(self._running):
            process.terminate()

    def run(self, arguments: Sequence[str], log_path: Path, cache: Path) -> int:
        """Exit code of ``python -m unihetero_jax.study.job ARGUMENTS``; its output is added to a file."""
        if self._ended:
            return _STOPPED
        environment = {"JAX_COMPILATION_CACHE_DIR": os.fspath(cache), **os.environ}
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


def _one(children: _Children, given: str, job: Job, scale: Scale, workdir: Path) -> int:
    place = job.place(workdir)
    place.mkdir(parents=True, exist_ok=True)
    with _lock(place / ".lock"):
        if (place / RESULT).exists():  # another runner made it while this one waited
            return 0
        arguments = ["run", given, str(workdir), scale, job.arm.name, str(job.seed)]
        return children.run(arguments, place / "log", workdir / "shared" / "compilation_cache")


def _share(study: Study, given: str, workdir: Path, scale: Scale, data: Mapping[str, Job]) -> None:
    """Makes datasets (place → a run that reads it) and towers, unless they are there."""
    shared = workdir / "shared"
    shared.mkdir(exist_ok=True)
    parts = [(Path(root), ["data", given, str(workdir), scale, job.arm.name]) for root, job in data.items()]
    parts += [(tower_place(workdir, kind), ["tower", given, str(workdir), scale, kind]) for kind in study.towers]
    with _lock(shared / ".lock"), _Children() as children:
        for place, arguments in parts:
            log_path = place.with_name(f"{place.name}.log")
            done = place.with_name(f"{place.name}.done")
            if done.exists() or not place.is_relative_to(shared.absolute()):  # the user's own data are there
                continue
            log.info("making %s, which runs share", place)
            place.parent.mkdir(parents=True, exist_ok=True)
            code = children.run(arguments, log_path, shared / "compilation_cache")
            if code:
                raise UsageError(f"{place} could not be made (exit code {code}); see {log_path}")
            done.touch()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds a file's lock, waiting for it; the operating system takes it from a process that dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
