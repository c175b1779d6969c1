"""``unihetero bench``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from unihetero_jax import run
from unihetero_jax.commands.arguments import output_directory, output_file, path, step
from unihetero_jax.commands.overrides import add_config, load_config
from unihetero_jax.errors import UsageError

_DETAILS = """\
Measures, on the devices that are here: the input pipeline alone (samples/s of each host), the train step on one
synthetic batch, and both together, as in training; with quantiles of the steps' times, tokens/s/device, MFU and memory.
The dataset (config.data.root, or config.data.sources) has to be there. Weights are random, nothing is saved.

--suite needs neither config nor dataset. Within --minutes it makes one table of what the stack does on this device:
step time, MFU, tokens/s and memory of each attention implementation with each remat policy at 1B parameters; of the
losses, and of 0.5B and 3B, with the best of them; each beside what `unihetero plan` predicts. Rows of 4,096 packed
slots in bf16; on CPUs all of it is tiny. What runs out of memory, fails or is not reached in time is a row, too.

examples:
  unihetero bench --config=configs/quickstart.py --config.data.root=data/watch64
  unihetero bench --config=configs/unihetero_1b.py --config.data.root=data/mine --steps=50 --out=bench.json
  unihetero bench --suite --out=benchmarks/h100
  python launch/local.py --processes=2 -- bench --config=configs/quickstart.py --config.data.root=data/watch64

exit codes:
  0   done
  2   the command line, the config or a file is wrong; one line on stderr says what
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, and the function that runs the verb."""
    parser.usage = (
        "unihetero bench [-h] --config=FILE.py [--steps=N] [--out=FILE.json] [--config.SECTION.KEY=VALUE ...]\n"
        "       unihetero bench [-h] --suite [--minutes=N] [--steps=N] [--out=DIR]"
    )
    parser.epilog = _DETAILS
    add_config(parser, required=False)
    parser.add_argument("--suite", action="store_true", help="measure a fixed set of models instead (default: no)")
    parser.add_argument("--minutes", type=_minutes, metavar="N", help="with --suite: time for all of it (default: 8)")
    parser.add_argument(
        "--steps",
        type=step,
        metavar="N",
        help="steps to time of each kind (default: 20; with --suite 10 per row)",
    )
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE.json|DIR",
        help="also write the result; with --suite the folder of suite.json and suite.md (default: no)",
    )
    parser.set_defaults(run=_run)


def _minutes(text: str) -> float:
    """A time above 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time above 0, such as 8")
    return found


def _run(options: argparse.Namespace) -> int:
    if options.suite:
        return _run_suite(options)
    if options.config is None:
        raise UsageError("missing --config=FILE.py, or --suite (see unihetero bench --help)")
    if options.minutes is not None:
        raise UsageError(f"--minutes={options.minutes:g} is for --suite; a config's steps are counted by --steps")
    out = None if options.out is None else _checked(output_file, options.out)
    run.bench(load_config(options), 20 if options.steps is None else options.steps, out)
    return 0


def _run_suite(options: argparse.Namespace) -> int:
    given = [f"--config={options.config}"] if options.config is not None else []
    given += [f"--config.{key}" for key, _ in options.overrides]
    if given:
        raise UsageError(f"{given[0]} with --suite: expected one or the other; the suite's models are its own")
    out = None if options.out is None else _checked(output_directory, options.out)
    settings = {"minutes": options.minutes, "steps": options.steps}
    run.bench_suite(out, **{name: value for name, value in settings.items() if value is not None})
    return 0


def _checked(check: Callable[[str], Path], out: Path) -> Path:
    """Return ``--out`` as the file or folder that it should be."""
    try:
        return check(str(out))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--out: {error}") from None
