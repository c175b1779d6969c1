"""A study as a job array: its shared parts first, then every run as a task of its own, then the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from settings import Job

from unihetero_jax.commands import study as cli
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class Array:
    """``count`` runs; arguments of ``unihetero`` that make their shared parts, run one of them, and write the report.

    Those of a run lack the ``--index``, 0 to ``count`` − 1.
    """

    count: int
    prepare: list[str]
    run: list[str]
    report: list[str]


def array(path: Path, job: Job) -> Array | None:
    """What a settings file's job is as an array; None where it is no study.

    How many runs there are comes from the study, read here: its file, and a relative path in the job's arguments, have
    to mean the same here and where the tasks start.

    Args:
      path: of the settings file, for messages.
      job: its section.

    Raises:
      UsageError: the job's arguments are no ``study run``, or it needs what they do not give.
    """
    if job.arguments[0] != "study":
        if job.at_once:
            raise UsageError(f"{path}: job.at_once={job.at_once}: is of studies; leave it out")
        return None
    if job.arguments[1:2] != ["run"]:
        raise UsageError(f"{path}: job.arguments: expected ['study', 'run', NAME, '--workdir=DIR', …] for a study")
    try:
        options = cli.parse(job.arguments[1:])
        if options.index is not None or options.dry_run or options.prepare or options.jobs != 1:
            raise UsageError("--index, --dry_run, --prepare and --jobs are the launcher's: leave them out")
        count = len(cli.tasks(options))
    except UsageError as error:
        raise UsageError(f"{path}: job.arguments: {error}") from error
    report = ["study", "report", options.name, f"--workdir={options.workdir}"]
    return Array(count, [*job.arguments, "--prepare"], job.arguments, report)
