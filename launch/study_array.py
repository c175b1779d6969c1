"""A study as a job array: its shared parts first, then one task per run, then the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from settings import Job

from unihetero_jax.commands import study
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class Array:
    """The commands of a study's job array.

    Attributes:
      count: number of runs.
      prepare: arguments of ``unihetero`` that make what the runs share.
      run: arguments that make one run, but for ``--index``, 0 to ``count`` − 1.
      report: arguments that write the report.
    """

    count: int
    prepare: list[str]
    run: list[str]
    report: list[str]


def array(path: Path, job: Job) -> Array | None:
    """Return the job array of a settings file's job; None where the job is no study.

    The study is read here to count its runs: its file, and relative paths in the job's arguments, have to mean the same
    here and where the tasks start.

    Args:
      path: the settings file, for messages.
      job: its section ``[job]``.

    Raises:
      UsageError: the job's arguments are no ``study run``, or the study needs data or weights that they do not give.
    """
    if job.arguments[0] != "study":
        if job.at_once:
            raise UsageError(f"{path}: job.at_once={job.at_once}: only a study has several tasks; leave it out")
        return None
    if job.arguments[1:2] != ["run"]:
        raise UsageError(f"{path}: job.arguments: expected ['study', 'run', NAME, '--workdir=DIR', …] for a study")
    try:
        options = study.parse(job.arguments[1:])
        if options.index is not None or options.dry_run or options.prepare or options.jobs != 1:
            raise UsageError("the launcher sets --index, --dry_run, --prepare and --jobs: leave them out")
        count = len(study.tasks(options))
    except UsageError as error:
        raise UsageError(f"{path}: job.arguments: {error}") from error
    report = ["study", "report", options.name, f"--workdir={options.workdir}"]
    return Array(count, [*job.arguments, "--prepare"], job.arguments, report)
