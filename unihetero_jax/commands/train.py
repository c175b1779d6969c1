"""``unihetero train``."""

from __future__ import annotations

import argparse

from unihetero_jax import run
from unihetero_jax.commands.arguments import output_directory
from unihetero_jax.commands.overrides import add_config, load_config

_DETAILS = """\
overrides:
  --config.SECTION.KEY=VALUE changes one value of the config, and may be given once for each key. The value must be of
  the key's type: an integer (10), a number (0.3, 1e-4), true or false, a word from a list, or text. A wrong key or
  value is refused before anything starts, with the nearest valid name. `unihetero config FILE.py` lists the keys.

  --config.data.root is the directory of the dataset. It is empty by default, which means WORKDIR/data.

examples:
  unihetero train --config=configs/quickstart.py --workdir=runs/watch
  unihetero train --config=quickstart --workdir=runs/short --config.train.steps=20
  unihetero train --config=quickstart --workdir=runs/vqa \\
      --config.data.mode=understanding --config.losses.semantic.weight=0 --config.logging.tensorboard=false

The same command again continues from the newest checkpoint in WORKDIR.

exit codes:
  0   the run is complete
  1   the loss was not finite
  2   the command line, the config or a file is wrong; one line on stderr says what
  75  saved when asked to stop (SIGTERM), hung (train.hang_timeout), or another host is lost: run the same command again
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, and the function that runs the verb."""
    parser.usage = "unihetero train [-h] --config=FILE.py --workdir=DIR [--config.SECTION.KEY=VALUE ...]"
    parser.epilog = _DETAILS
    add_config(parser)
    add_new_workdir(parser)
    parser.add_argument(
        "--accept_changed_imports",
        action="store_true",
        help="continue although files of config.imports have changed since the run began (default: no)",
    )
    parser.set_defaults(run=_run)


def add_new_workdir(parser: argparse.ArgumentParser) -> None:
    """Declare the ``--workdir`` of a verb that trains."""
    parser.add_argument(
        "--workdir",
        type=output_directory,
        required=True,
        metavar="DIR",
        help="gets checkpoints, metrics and the dataset (unless --config.data.root is set); created when missing",
    )


def _run(options: argparse.Namespace) -> int:
    return run.train(load_config(options), options.workdir, accept_changed_imports=options.accept_changed_imports)
