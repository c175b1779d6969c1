"""``unihetero eval``."""

from __future__ import annotations

import argparse

from unihetero_jax import run
from unihetero_jax.commands.arguments import add_workdir, output_file, step
from unihetero_jax.commands.overrides import allow_overrides, given_overrides
from unihetero_jax.config import Config
from unihetero_jax.config.loading import EVALUATION, change, load

_DETAILS = """\
examples:
  unihetero eval --workdir=runs/watch
  unihetero eval --workdir=runs/watch --step=200 --out=step200.json
  unihetero eval --workdir=runs/watch --follow
  unihetero eval --workdir=runs/watch --config.evaluators.generation.attribute_classifier=runs/attributes
  unihetero eval --workdir=runs/watch --config.evaluators.probes.kind=probes --config.evaluators.vqa=none
  unihetero eval --workdir=runs/watch --config.evaluators.perplexity.text=notes.txt --config.evaluate.images=50

--config.SECTION.KEY=VALUE is of config.evaluate and config.evaluators; the rest of a run's config is fixed.

exit codes:
  0   the evaluation is complete
  2   the command line is wrong, or there is no such checkpoint; one line on stderr says what
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, and the function that runs the verb."""
    parser.usage = (
        "unihetero eval [-h] --workdir=DIR [--step=N | --follow] [--out=FILE.json] [--config.SECTION.KEY=VALUE ...]"
    )
    parser.epilog = _DETAILS
    add_workdir(parser)
    allow_overrides(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=step, metavar="N", help="the checkpoint to evaluate (default: the newest)")
    which.add_argument(
        "--follow",
        action="store_true",
        help="evaluate each checkpoint as it is written, until the run is complete (default: one checkpoint)",
    )
    parser.add_argument("--out", type=output_file, metavar="FILE.json", help="also write the scores here (default: no)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    changes = dict(given_overrides(options))
    if changes:
        # Before JAX is imported: a typing slip should not wait for it.
        stored = options.workdir / "config.json"
        change(load(stored) if stored.is_file() else Config(), options.overrides, EVALUATION)
    run.evaluate(options.workdir, step=options.step, follow=options.follow, out=options.out, changes=changes)
    return 0
