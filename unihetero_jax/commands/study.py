"""``unihetero study list|run|status|report``."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import get_args

from unihetero_jax.commands.arguments import Parser, count, existing_directory, output_directory
from unihetero_jax.config import Config
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel import environment
from unihetero_jax.parallel.startup import set_up_logging
from unihetero_jax.study import Scale, Study, registry, runner
from unihetero_jax.study.run_config import Run, check_given, run_config
from unihetero_jax.study.workdir import Workdir

_DETAILS = """\
examples:
  unihetero study list mutual_benefit
  unihetero study run mutual_benefit --workdir=runs/studies --only='vq_vq-*' --seeds=3
  unihetero study run all --workdir=runs/studies --data=emoji=data/emoji/folder
  unihetero study status mutual_benefit --workdir=runs/studies
  unihetero study report mutual_benefit --workdir=runs/studies
  unihetero study run my_study.py --workdir=runs/mine
  unihetero study run mutual_benefit --workdir=DIR --seeds=5 --prepare           # a job array by hand; launch/slurm.py
  unihetero study run mutual_benefit --workdir=DIR --seeds=5 --index=$SLURM_ARRAY_TASK_ID         # and gke.py make one
  unihetero study run llava --scale=paper --workdir=DIR --data=instructions=DATA,requests=DATA \\
      --weights=clip=WEIGHTS,vq16=WEIGHTS,stage1_clip_clip=RUN,stage1_clip_vq=RUN --dry_run

A run that has a result is not run again; the same command continues where it was stopped. Several commands may use one
DIR at a time, and several studies may share it: an arm that two of them have is run once.

exit codes of run:
  0   all selected runs are done
  1   the loss of a run was not finite; its log is DIR/NAME/arms/ARM/seed-N/log
  2   the command line, the study, DIR or a run's config is wrong; one line on stderr, or in its log, says what
  75  stopped by a signal and saved: run the same command again to continue; above 128: a run's process was killed
Of several runs' exit codes, the highest.
"""

# Seconds between checks for new results.
_FOLLOW_S = 30.0


@dataclass(frozen=True)
class Task:
    """One task of a job array.

    Attributes:
      given: name or path that the study is found by.
      study: the study.
      run: the run to make.
    """

    given: str
    study: Study
    run: Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their flags, and the function that runs each."""
    parser.epilog = _DETAILS
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listed = verbs.add_parser("list", help="list the studies", description="List studies, arms and claims.")
    listed.add_argument("name", nargs="?", metavar="NAME", help="also list the arms and claims of this one")
    listed.set_defaults(run=_list)

    made = verbs.add_parser(
        "run",
        help="run a study, or the runs that are missing",
        usage="unihetero study run NAME --workdir=DIR [--scale=tiny|small|paper] [--seeds=N] [--only=PATTERN] "
        "[--jobs=N] [--data=NAME=DIR,…] [--weights=KIND=DIR,…] [--dry_run | --prepare | --index=N]",
        description="Run the arms of a study that have no result yet, and write the report.",
    )
    made.add_argument("name", metavar="NAME", help="a study, a FILE.py with STUDY, or all")
    made.add_argument(
        "--workdir", type=output_directory, required=True, metavar="DIR", help="directory of all runs and reports"
    )
    made.add_argument(
        "--scale",
        default="tiny",
        metavar="SCALE",
        help="size of the runs: tiny, small or paper (default: %(default)s)",
    )
    made.add_argument("--seeds", type=count, default=5, metavar="N", help="seeds of each arm (default: %(default)s)")
    made.add_argument("--only", default="*", metavar="PATTERN", help="runs, as 'vq_vq-*' or '*/seed-0' (default: all)")
    made.add_argument(
        "--jobs", type=count, default=1, metavar="N", help="runs at a time; one uses all cores (default: %(default)s)"
    )
    made.add_argument("--data", default="", metavar="NAME=DIR,…", help="your own datasets, by the names of the study")
    made.add_argument(
        "--weights", default="", metavar="KIND=DIR,…", help="published weights: siglip, vq16, clip, …, and decoder"
    )
    part = made.add_mutually_exclusive_group()
    part.add_argument("--dry_run", action="store_true", help="list the runs and which are done, and stop")
    part.add_argument("--prepare", action="store_true", help="only make what the runs share")
    part.add_argument("--index", type=int, metavar="N", help="only run number N of --dry_run's list, for job arrays")
    made.set_defaults(run=_run)

    for name, function, summary in (
        ("status", _status, "show which runs are done"),
        ("report", _report, "write report.html and report.json of the runs that are done"),
    ):
        shown = verbs.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        shown.add_argument("name", metavar="NAME", help="a study, or all")
        shown.add_argument(
            "--workdir", type=existing_directory, required=True, metavar="DIR", help="the runs' directory"
        )
        shown.set_defaults(run=function)
        if name == "report":
            shown.add_argument(
                "--follow", action="store_true", help="write it again when there are new results, until stopped"
            )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of ``unihetero study`` for launchers, which pass them to ``tasks``.

    Raises:
      UsageError: names the argument and what was expected.
    """
    parser = Parser(prog="unihetero study")
    add_arguments(parser)
    return parser.parse_args(arguments)


def tasks(options: argparse.Namespace) -> list[Task]:
    """List what ``--index`` counts: the runs of ``study run``, seed by seed; one that several studies share comes once.

    Raises:
      UsageError: options contradict each other, or a study needs data or weights that were not given.
    """
    workdir = _asked(options).with_stored()
    found: list[Task] = []
    owners: dict[Path, tuple[str, str]] = {}
    for given, study in _studies(options):
        # Missing data or weights are reported before the first run, not after hours.
        results = {
            arm.name: workdir.result_path(run_config(study, Run(arm, 0), workdir)) for arm in study.arms(workdir.scale)
        }
        for run in runner.select_runs(study, workdir.scale, options.seeds, options.only):
            own = study.name, run.arm.name
            if owners.setdefault(results[run.arm.name], own) == own:
                found.append(Task(given, study, run))
    return found


def _list(options: argparse.Namespace) -> int:
    if options.name is None:
        for study in registry.built_in().values():
            print(f"{study.name:<20}{len(study.arms()):>3} arms, {len(study.claims)} claims: {study.question}")
        return 0
    study = registry.find(options.name)
    print(f"{study.name}: {study.question}\n{study.source}\n\narms:")
    small = study.arms("tiny")
    print("\n".join(f"  {arm.name}{'' if arm in small else '  (at scale paper only)'}" for arm in study.arms()))
    print("\nclaims:")
    print("\n".join(f"  {claim.id}: {claim.statement}" for claim in study.claims))
    return 0


def _asked(options: argparse.Namespace) -> Workdir:
    """Return the workdir as the command line describes it."""
    scales = get_args(Scale)
    if options.scale not in scales:
        raise UsageError(f"--scale={options.scale}: expected {', '.join(scales[:-1])} or {scales[-1]}")
    if options.name == "all" and options.only != "*":
        raise UsageError("--only selects runs of one study: expected its name instead of all")
    data, weights = _pairs(options.data, "data"), _pairs(options.weights, "weights")
    return Workdir(options.workdir, options.scale, data, weights)


def _studies(options: argparse.Namespace) -> list[tuple[str, Study]]:
    return _chosen(options.name, lambda study: options.scale in study.scales)


def _run(options: argparse.Namespace) -> int:
    set_up_logging()
    cluster = environment.find()
    if cluster is not None and options.index is None and not options.dry_run:
        raise UsageError(
            f"one of {cluster.count} processes: together they make one run, so expected --index=N; start one process "
            "for all runs, or to --prepare them"
        )
    listed = tasks(options)
    if options.index is not None and not 0 <= options.index < len(listed):
        raise UsageError(f"--index={options.index}: expected 0 to {len(listed) - 1}, as --dry_run lists them")
    asked = _asked(options)
    if options.dry_run:
        _print(listed, asked.with_stored())
        return 0
    check_given(asked, [*registry.built_in().values(), *(study for _, study in _studies(options))])
    _stop_gracefully()
    workdir = asked.save()
    if options.index is not None:
        task = listed[options.index]
        member = None if cluster is None else cluster.number
        return runner.run(task.study, task.given, workdir, [task.run], 1, member)
    worst = 0
    for given, study in _studies(options):
        runs = runner.select_runs(study, workdir.scale, options.seeds, options.only)
        if options.prepare:
            code = runner.prepare(study, given, workdir, runs)
        else:
            code = runner.run(study, given, workdir, runs, options.jobs)
            _write_report(study, workdir)
        worst = max(worst, code)
    return worst


def _stop_gracefully() -> None:
    """From now on let the first SIGTERM stop the runs, which save, and end this process with exit code 75."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(runner.STOPPED)

    signal.signal(signal.SIGTERM, stop)


def _print(listed: Sequence[Task], workdir: Workdir) -> None:
    for number, task in enumerate(listed):
        config = run_config(task.study, task.run, workdir)
        name = f"{task.study.name}/{task.run.name}"
        print(f"{number:>4}  {name:<45}{_mark(workdir, config)}  {workdir.run(config)}")


def _pairs(words: str, flag: str) -> dict[str, str]:
    """Parse ``NAME=DIR,NAME=DIR`` into absolute directories by name."""
    pairs = [word.partition("=") for word in words.split(",") if word]
    if wrong := [name for name, _, value in pairs if not value]:
        raise UsageError(
            f"--{flag}={words}: {wrong[0]!r} has no directory; expected NAME=DIR, with commas between them"
        )
    return {name: str(Path(value).expanduser().absolute()) for name, _, value in pairs}


def _chosen(name: str, wanted: Callable[[Study], bool]) -> list[tuple[str, Study]]:
    """Return the studies of a name, each with the name it is found by; for ``all`` the wanted ones."""
    if name != "all":
        return [(name, registry.find(name))]
    return [(name, study) for name, study in registry.built_in().items() if wanted(study)]


def _begun(options: argparse.Namespace) -> tuple[Workdir, list[Study]]:
    """Return the workdir, and the chosen studies; for ``all`` those begun in it."""
    workdir = Workdir.open(options.workdir)
    return workdir, [study for _, study in _chosen(options.name, lambda study: workdir.study(study).is_dir())]


def _status(options: argparse.Namespace) -> int:
    workdir, studies = _begun(options)
    seeds = max(workdir.all_seeds(), default=0) + 1
    for study in studies:
        print(f"{study.name} at scale {workdir.scale}, seeds 0 … {seeds - 1}: ● done, ◐ begun, · not begun")
        for arm in study.arms(workdir.scale):
            configs = [run_config(study, Run(arm, seed), workdir) for seed in range(seeds)]
            print(f"  {arm.name:<42}{' '.join(_mark(workdir, config) for config in configs)}")
    return 0


def _mark(workdir: Workdir, config: Config) -> str:
    return "●" if workdir.result_path(config).exists() else "◐" if (workdir.run(config) / "run").exists() else "·"


def _report(options: argparse.Namespace) -> int:
    workdir, studies = _begun(options)
    if options.follow:
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        _follow(workdir, options, stopped)
        return 0
    for study in studies:
        _write_report(study, workdir)
    return 0


def _follow(workdir: Workdir, options: argparse.Namespace, stopped: threading.Event) -> None:
    """Write reports whenever there are new results, and a last time when it is stopped."""
    before: set[Path] | None = None
    while True:
        last = stopped.wait(0.0 if before is None else _FOLLOW_S)
        found = set(workdir.path.glob("runs/*/seed-*/result-*.json"))
        if found != before:
            before = found
            for study in _begun(options)[1]:
                _write_report(study, workdir)
        if last:
            return


def _write_report(study: Study, workdir: Workdir) -> None:
    # matplotlib and scipy take seconds to import, and most verbs need neither.
    from unihetero_jax.study import report, report_data

    made = report_data.make_report(study, workdir)
    print(report.text(made))
    print("\nwrote " + ", ".join(map(str, report.write(made, workdir))), flush=True)
