"""``unihetero bench``."""

from __future__ import annotations

import argparse

from unihetero_jax import run
from unihetero_jax.commands.arguments import output_file, step
from unihetero_jax.commands.overrides import add_config, load_config

_DETAILS = """\
Measures, on the devices that are here: the input pipeline alone (samples/s of each host), the train step on one
synthetic batch, and both together, as in training; with quantiles of the steps' times, tokens/s/device, MFU and memory.
The dataset (config.data.root, or config.data.sources) has to be there. Weights are random, nothing is saved.

examples:
  unihetero bench --config=configs/quickstart.py --config.data.root=data/watch64
  unihetero bench --config=configs/unihetero_1b.py --config.data.root=data/mine --steps=50 --out=bench.json
  python launch/local.py --processes=2 -- bench --config=configs/quickstart.py --config.data.root=data/watch64

exit codes:
  0   done
  2   the command line, the config or a file is wrong; one line on stderr says what
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, and the function that runs the verb."""
    parser.usage = (
        "unihetero bench [-h] --config=FILE.py [--steps=N] [--out=FILE.json] [--config.SECTION.KEY=VALUE ...]"
    )
    parser.epilog = _DETAILS
    add_config(parser)
    parser.add_argument(
        "--steps", type=step, default=20, metavar="N", help="steps to time of each kind (default: %(default)s)"
    )
    parser.add_argument("--out", type=output_file, metavar="FILE.json", help="also write the result (default: no)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    run.bench(load_config(options), options.steps, options.out)
    return 0
