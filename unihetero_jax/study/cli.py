"""``unihetero study list|run|status|report``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from unihetero_jax.arguments import count, existing_directory, output_directory
from unihetero_jax.errors import UsageError

if TYPE_CHECKING:
    from unihetero_jax.config import Config
    from unihetero_jax.study.declaration import Study
    from unihetero_jax.study.places import Place


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
        "[--jobs=N] [--data=NAME=DIR,…] [--weights=KIND=DIR,…] [--dry_run] [--index=N]",
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
    made.add_argument("--dry_run", action="store_true", help="tell which runs there are and which are done, and stop")
    made.add_argument("--index", type=int, metavar="N", help="only run number N of --dry_run's list, for job arrays")
    made.set_defaults(run=_run)

    for name, function, summary in (
        ("status", _status, "tell which runs are done"),
        ("report", _report, "write report.html and report.json of the runs that are done"),
    ):
        shown = verbs.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        shown.add_argument("name", metavar="NAME", help="which study, or all")
        shown.add_argument("--workdir", type=existing_directory, required=True, metavar="DIR", help="of the runs")
        shown.set_defaults(run=function)


def _list(options: argparse.Namespace) -> int:
    from unihetero_jax.study import registry

    if options.name is None:
        for study in registry.STUDIES.values():
            print(f"{study.name:<20}{len(study.arms()):>3} arms, {len(study.claims)} claims: {study.question}")
        return 0
    study = registry.find(options.name)
    print(f"{study.name}: {study.question}\n{study.source}\n\narms:")
    print("\n".join(f"  {arm.name}" for arm in study.arms()))
    print("\nclaims:")
    print("\n".join(f"  {claim.id}: {claim.statement}" for claim in study.claims))
    return 0


def _run(options: argparse.Namespace) -> int:
    from unihetero_jax.startup import speak
    from unihetero_jax.study import declaration, places, runner

    speak()
    scales = get_args(declaration.Scale)
    if options.scale not in scales:
        raise UsageError(f"--scale={options.scale}: expected {', '.join(scales[:-1])} or {scales[-1]}")
    asked = places.Place(
        options.workdir, options.scale, _pairs(options.data, "data"), _pairs(options.weights, "weights")
    )
    if options.name == "all" and (options.only != "*" or options.index is not None):
        raise UsageError("--only and --index are of one study: expected its name instead of all")
    chosen = _chosen(options.name, lambda study: asked.scale in study.scales)
    wanted = {study.name: runner.jobs(study, asked.scale, options.seeds, options.only) for _, study in chosen}
    if options.index is not None and not 0 <= options.index < len(wanted[chosen[0][1].name]):
        raise UsageError(
            f"--index={options.index}: expected 0 to {len(wanted[chosen[0][1].name]) - 1}, as --dry_run lists them"
        )
    place = places.remembered(asked) if options.dry_run else places.claim(asked)
    # What is missing is said before the first run, and not after hours.
    configs = {study.name: [places.experiment(study, job, place) for job in wanted[study.name]] for _, study in chosen}
    if options.dry_run:
        for _, study in chosen:
            for number, (job, config) in enumerate(zip(wanted[study.name], configs[study.name], strict=True)):
                print(f"{number:>4}  {study.name}/{job.name:<45}{_mark(place, config)}  {place.run(config)}")
        return 0
    failed = False
    for given, study in chosen:
        mine = wanted[study.name]
        if options.index is not None:
            mine = mine[options.index : options.index + 1]
        failed |= bool(runner.run(study, given, place, mine, options.jobs))
        if options.index is None:
            _write_report(study, place)
    return 1 if failed else 0


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
    seeds = max([0, *(int(path.name[5:]) + 1 for path in options.workdir.glob("runs/*/seed-*"))])
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
    for study in studies:
        _write_report(study, place)
    return 0


def _write_report(study: Study, place: Place) -> None:
    from unihetero_jax.study import report

    made = report.make(study, place)
    print(report.text(made))
    print("\nwrote " + ", ".join(map(str, report.write(made, place))), flush=True)
