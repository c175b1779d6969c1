"""The verbs that measure and watch a run: `unihetero bench` and `unihetero status`."""

from __future__ import annotations

import argparse

from unihetero_jax.commands.arguments import add_workdir, output_file, path, step


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what `unihetero bench` takes."""
    parser.add_argument(
        "--config", type=path, required=True, metavar="FILE.py", help="the experiment: a Python file with get_config()"
    )
    parser.add_argument("--steps", type=step, default=20, metavar="N", help="to time of each kind (default: 20)")
    parser.add_argument("--out", type=output_file, metavar="FILE.json", help="also write the result (default: no)")
    parser.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from unihetero_jax.config import loading as config_file

    config = config_file.load(options.config, options.overrides)
    from unihetero_jax.run import benchmark as bench

    return bench.run(config, options.steps, options.out)


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what `unihetero status` takes."""
    add_workdir(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts (default: no)")
    parser.set_defaults(run=_status)


def _status(options: argparse.Namespace) -> int:

    return status.run(options.workdir, options.json)
