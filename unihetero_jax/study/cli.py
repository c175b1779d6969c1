"""``unihetero study list|run|status|report``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, get_args

from unihetero_jax.arguments import count, existing_directory, output_directory
from unihetero_jax.errors import UsageError

if TYPE_CHECKING:
    from unihetero_jax.study.declaration import Scale, Study
    from unihetero_jax.study.runner import Job


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Declares the verbs, and which function each runs."""
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listed = verbs.add_parser("list", help="the studies there are", description="List studies, arms and claims.")
    listed.add_argument("name", nargs="?", metavar="NAME", help="tell more about this one")
    listed.set_defaults(run=_list)

    made = verbs.add_parser(
        "run",
        help="run a study, or what is missing of it",
        usage="unihetero study run NAME --workdir=DIR [--scale=tiny|small] [--seeds=N] [--only=PATTERN] [--jobs=N]",
        description="Run the arms of a study that have no result yet, and write the report.",
    )
    made.add_argument("name", metavar="NAME", help="which study, or a FILE.py with STUDY")
    made.add_argument("--workdir", type=output_directory, required=True, metavar="DIR", help="where everything goes")
    made.add_argument(
        "--scale", default="tiny", metavar="SCALE", help="how large its runs are, tiny or small (default: %(default)s)"
    )
    made.add_argument("--seeds", type=count, default=5, metavar="N", help="seeds of each arm (default: %(default)s)")
    made.add_argument("--only", default="*", metavar="PATTERN", help="runs, as 'vq_vq-*' or '*/seed-0' (default: all)")
    made.add_argument(
        "--jobs", type=count, default=1, metavar="N", help="runs at a time; one uses all cores (default: %(default)s)"
    )
    made.set_defaults(run=_run)

    for name, function, summary in (
        ("status", _status, "tell which runs are done"),
        ("report", _report, "write report.html and report.json of the runs that are done"),
    ):
        shown = verbs.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        shown.add_argument("name", metavar="NAME", help="which study")
        shown.add_argument("--workdir", type=existing_directory, required=True, metavar="DIR", help="of the study")
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
    from unihetero_jax.study import declaration, registry, report, runner

    speak()
    study = registry.find(options.name)
    scales = get_args(declaration.Scale)
    if options.scale not in scales:
        raise UsageError(f"--scale={options.scale}: expected {' or '.join(scales)}")
    wanted = runner.jobs(study, options.seeds, options.only)
    failed = runner.run(study, options.name, options.workdir, options.scale, wanted, options.jobs)
    made = report.make(study, options.workdir, options.scale)
    print(report.text(made))
    print("\nwrote " + ", ".join(map(str, report.write(made, options.workdir))))
    return 1 if failed else 0


def _status(options: argparse.Namespace) -> int:
    from unihetero_jax.study import runner

    study, scale = _opened(options)
    seeds = max([0, *(int(path.name[5:]) for path in options.workdir.glob("arms/*/seed-*"))]) + 1
    for arm in study.arms():
        jobs = [runner.Job(arm, seed) for seed in range(seeds)]
        marks = [_mark(job, options) for job in jobs]
        print(f"  {arm.name:<40}{' '.join(marks)}")
    print(f"\n{study.name} at scale {scale}, seeds 0 … {seeds - 1}: ● done, ◐ begun, · not begun")
    return 0


def _mark(job: Job, options: argparse.Namespace) -> str:
    from unihetero_jax.study import runner

    place = job.place(options.workdir)
    return "●" if (place / runner.RESULT).exists() else "◐" if (place / "run").exists() else "·"


def _report(options: argparse.Namespace) -> int:
    from unihetero_jax.study import report

    study, scale = _opened(options)
    made = report.make(study, options.workdir, scale)
    print(report.text(made))
    print("\nwrote " + ", ".join(map(str, report.write(made, options.workdir))))
    return 0


def _opened(options: argparse.Namespace) -> tuple[Study, Scale]:
    from unihetero_jax.study import registry, runner

    study, found = registry.find(options.name), runner.opened(options.workdir)
    if found["study"] != study.name:
        raise UsageError(f"{options.workdir} belongs to study {found['study']}, not {study.name}")
    scale: Any = found["scale"]
    return study, scale
