"""``unihetero study list|run|status|report``."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, get_args

from unihetero_jax.commands.arguments import Parser, count, existing_directory, output_directory
from unihetero_jax.errors import UsageError

if TYPE_CHECKING:
    from unihetero_jax.config import Config
    from unihetero_jax.study.declaration import Study
    from unihetero_jax.study.places import Job, Place

# Seconds between two looks for new results.
_FOLLOW_S = 30.0


@dataclass(frozen=True)
class Task:
    """One number of a job array: a run, its study, and the name that this is found by."""

    given: str
    study: Study
    job: Job


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Declares the verbs, and which function each runs."""
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listed = verbs.add_parser("list", help="the studies there are", description="List studies, arms and claims.")
    listed.add_argument("name", nargs="?", metavar="NAME", help="tell more about this one")
    listed.set_defaults(run=_list)

    made = verbs.add_parser(
        "run",
        help="run a study, or what is missing of it",
        usage="unihetero study run NAME --workdir=DIR [--scale=tiny|small|paper] [--seeds=N] [--only=PATTERN] "
        "[--jobs=N] [--data=NAME=DIR,…] [--weights=KIND=DIR,…] [--dry_run | --prepare | --index=N]",
        description="Run the arms of a study that have no result yet, and write the report.",
    )
    made.add_argument("name", metavar="NAME", help="which study, a FILE.py with STUDY, or all")
    made.add_argument("--workdir", type=output_directory, required=True, metavar="DIR", help="where everything goes")
    made.add_argument(
        "--scale",
        default="tiny",
        metavar="SCALE",
        help="how large its runs are, tiny, small or paper (default: %(default)s)",
    )
    made.add_argument("--seeds", type=count, default=5, metavar="N", help="seeds of each arm (default: %(default)s)")
    made.add_argument("--only", default="*", metavar="PATTERN", help="runs, as 'vq_vq-*' or '*/seed-0' (default: all)")
    made.add_argument(
        "--jobs", type=count, default=1, metavar="N", help="runs at a time; one uses all cores (default: %(default)s)"
    )
    made.add_argument("--data", default="", metavar="NAME=DIR,…", help="datasets of your own, as a study names them")
    made.add_argument(
        "--weights", default="", metavar="KIND=DIR,…", help="published weights: siglip, vq16, clip, …, and decoder"
    )
    part = made.add_mutually_exclusive_group()
    part.add_argument("--dry_run", action="store_true", help="tell which runs there are and which are done, and stop")
    part.add_argument("--prepare", action="store_true", help="make what the runs share, and no run")
    part.add_argument("--index", type=int, metavar="N", help="only run number N of --dry_run's list, for job arrays")
    made.set_defaults(run=_run)

    for name, function, summary in (
        ("status", _status, "tell which runs are done"),
        ("report", _report, "write report.html and report.json of the runs that are done"),
    ):
        shown = verbs.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        shown.add_argument("name", metavar="NAME", help="which study, or all")
        shown.add_argument("--workdir", type=existing_directory, required=True, metavar="DIR", help="of the runs")
        shown.set_defaults(run=function)
        if name == "report":
            shown.add_argument(
                "--follow", action="store_true", help="write it again when there are new results, until stopped"
            )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of ``unihetero study ARGUMENTS``, for launchers, which ask for ``tasks``.

    Raises:
      UsageError: naming the argument and what was expected.
    """
    parser = Parser(prog="unihetero study")
    add_verbs(parser)
    return parser.parse_args(arguments)


def tasks(options: argparse.Namespace) -> list[Task]:
    """What ``--index`` counts: the runs of ``study run``, seed by seed; one that several studies share comes once.

    Raises:
      UsageError: options contradict each other, or a study needs data or weights that nobody gave.
    """
    from unihetero_jax.study import places, runner

    place = places.remembered(_asked(options))
    found: list[Task] = []
    owners: dict[Path, tuple[str, str]] = {}
    for given, study in _studies(options):
        # What is missing is said before the first run, and not after hours.
        results = {
            arm.name: place.result(places.experiment(study, places.Job(arm, 0), place))
            for arm in study.arms(place.scale)
        }
        for job in runner.jobs(study, place.scale, options.seeds, options.only):
            own = study.name, job.arm.name
            if owners.setdefault(results[job.arm.name], own) == own:
                found.append(Task(given, study, job))
    return found


def _list(options: argparse.Namespace) -> int:
    from unihetero_jax.study import registry

    if options.name is None:
        for study in registry.STUDIES.values():
            print(f"{study.name:<20}{len(study.arms()):>3} arms, {len(study.claims)} claims: {study.question}")
        return 0
    study = registry.find(options.name)
    print(f"{study.name}: {study.question}\n{study.source}\n\narms:")
    small = study.arms("tiny")
    print("\n".join(f"  {arm.name}{'' if arm in small else '  (at scale paper only)'}" for arm in study.arms()))
    print("\nclaims:")
    print("\n".join(f"  {claim.id}: {claim.statement}" for claim in study.claims))
    return 0


def _asked(options: argparse.Namespace) -> Place:
    """The workdir with what the command line says of it."""
    from unihetero_jax.study import declaration, places

    scales = get_args(declaration.Scale)
    if options.scale not in scales:
        raise UsageError(f"--scale={options.scale}: expected {', '.join(scales[:-1])} or {scales[-1]}")
    if options.name == "all" and options.only != "*":
        raise UsageError("--only is of one study: expected its name instead of all")
    data, weights = _pairs(options.data, "data"), _pairs(options.weights, "weights")
    return places.Place(options.workdir, options.scale, data, weights)


def _studies(options: argparse.Namespace) -> list[tuple[str, Study]]:
    return _chosen(options.name, lambda study: options.scale in study.scales)


def _run(options: argparse.Namespace) -> int:
    from unihetero_jax.parallel import environment
    from unihetero_jax.parallel.startup import set_up_logging
    from unihetero_jax.study import places, registry, runner

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
        _print(listed, places.remembered(asked))
        return 0
    places.check_given(asked, [*registry.STUDIES.values(), *(study for _, study in _studies(options))])
    _stop_gently()
    place = places.claim(asked)
    if options.index is not None:
        task = listed[options.index]
        member = None if cluster is None else cluster.number
        return runner.run(task.study, task.given, place, [task.job], 1, member)
    worst = 0
    for given, study in _studies(options):
        mine = runner.jobs(study, place.scale, options.seeds, options.only)
        if options.prepare:
            code = runner.prepare(study, given, place, mine)
        else:
            code = runner.run(study, given, place, mine, options.jobs)
            _write_report(study, place)
        worst = max(worst, code)
    return worst


def _stop_gently() -> None:
    """From now on SIGTERM, the first one, stops the runs, which save, and ends this process with exit code 75."""
    from unihetero_jax.study import runner

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(runner.STOPPED)

    signal.signal(signal.SIGTERM, stop)


def _print(listed: Sequence[Task], place: Place) -> None:
    from unihetero_jax.study import places

    for number, task in enumerate(listed):
        config = places.experiment(task.study, task.job, place)
        name = f"{task.study.name}/{task.job.name}"
        print(f"{number:>4}  {name:<45}{_mark(place, config)}  {place.run(config)}")


def _pairs(words: str, flag: str) -> dict[str, str]:
    """``NAME=DIR,NAME=DIR`` as absolute directories by name."""
    pairs = [word.partition("=") for word in words.split(",") if word]
    if wrong := [name for name, _, value in pairs if not value]:
        raise UsageError(
            f"--{flag}={words}: {wrong[0]!r} has no directory; expected NAME=DIR, with commas between them"
        )
    return {name: str(Path(value).expanduser().absolute()) for name, _, value in pairs}


def _chosen(name: str, wanted: Callable[[Study], bool]) -> list[tuple[str, Study]]:
    """Studies, and the names they are found by; of all of them those that are wanted."""
    from unihetero_jax.study import registry

    if name != "all":
        return [(name, registry.find(name))]
    return [(name, study) for name, study in registry.STUDIES.items() if wanted(study)]


def _begun(options: argparse.Namespace) -> tuple[Place, list[Study]]:
    """A workdir, and of the studies that are meant those that were begun in it."""
    from unihetero_jax.study import places

    place = places.opened(options.workdir)
    return place, [study for _, study in _chosen(options.name, lambda study: place.own(study).is_dir())]


def _status(options: argparse.Namespace) -> int:
    from unihetero_jax.study import places

    place, studies = _begun(options)
    seeds = max(place.all_seeds(), default=0) + 1
    for study in studies:
        print(f"{study.name} at scale {place.scale}, seeds 0 … {seeds - 1}: ● done, ◐ begun, · not begun")
        for arm in study.arms(place.scale):
            configs = [places.experiment(study, places.Job(arm, seed), place) for seed in range(seeds)]
            print(f"  {arm.name:<42}{' '.join(_mark(place, config) for config in configs)}")
    return 0


def _mark(place: Place, config: Config) -> str:
    return "●" if place.result(config).exists() else "◐" if (place.run(config) / "run").exists() else "·"


def _report(options: argparse.Namespace) -> int:
    place, studies = _begun(options)
    if options.follow:
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        _follow(place, options, stopped)
        return 0
    for study in studies:
        _write_report(study, place)
    return 0


def _follow(place: Place, options: argparse.Namespace, stopped: threading.Event) -> None:
    """Writes reports whenever there are new results, and for a last time when it is stopped."""
    before: set[Path] | None = None
    while True:
        last = stopped.wait(0.0 if before is None else _FOLLOW_S)
        found = set(place.workdir.glob("runs/*/seed-*/result-*.json"))
        if found != before:
            before = found
            for study in _begun(options)[1]:
                _write_report(study, place)
        if last:
            return


def _write_report(study: Study, place: Place) -> None:
    from unihetero_jax.study import report

    made = report.make(study, place)
    print(report.text(made))
    print("\nwrote " + ", ".join(map(str, report.write(made, place))), flush=True)
