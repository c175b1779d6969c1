"""``unihetero status``."""

from __future__ import annotations

import argparse
import json

from unihetero_jax import run
from unihetero_jax.commands.arguments import add_workdir

_DETAILS = """\
Reads the workdir of a run, running or ended: step, loss, speed, newest checkpoint, and where the time of all its starts
went. `lost` is work that was repeated after a crash, `down` the time between two starts.

examples:
  unihetero status --workdir=runs/watch
  unihetero status --workdir=runs/watch --json

exit codes:
  0   done
  2   the command line is wrong, or there is no such run; one line on stderr says what
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, and the function that runs the verb."""
    parser.epilog = _DETAILS
    add_workdir(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts (default: no)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    found = run.status(options.workdir)
    print(json.dumps(found, indent=1) if options.json else run.format_status(options.workdir, found))
    return 0
