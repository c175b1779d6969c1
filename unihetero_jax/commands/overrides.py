"""``--config`` of the command line: the file of an experiment, and values of single keys."""

from __future__ import annotations

import argparse
from typing import Any

from unihetero_jax.commands.arguments import OVERRIDE, path
from unihetero_jax.config.loading import UNIFIED, Tree, load, value_type
from unihetero_jax.errors import UsageError


def add_config(parser: argparse.ArgumentParser, help: str = "", required: bool = True) -> None:
    """Declare the ``--config`` of a verb, and let it take ``--config.KEY=VALUE``."""
    parser.add_argument(
        "--config",
        type=path,
        required=required,
        metavar="FILE.py",
        help="the experiment: a Python file with get_config(), the name of one that comes with the package, or the "
        f"config.json of a run{help}",
    )
    allow_overrides(parser)


def allow_overrides(parser: argparse.ArgumentParser) -> None:
    """Let a verb take ``--config.KEY=VALUE``."""
    parser.set_defaults(overrides=[])


def given_overrides(options: argparse.Namespace, tree: Tree = UNIFIED) -> list[tuple[str, str]]:
    """The overrides of a command.

    Raises:
      UsageError: one has no value; names the expected one.
    """
    for key, text in options.overrides:
        if text is None:
            expected = value_type(key, tree).describe()
            raise UsageError(f"{OVERRIDE}{key} has no value: expected {expected}, as in {OVERRIDE}{key}=VALUE")
    return list(options.overrides)


def load_config(options: argparse.Namespace, tree: Tree = UNIFIED) -> Any:
    """The config that a command names, with its overrides.

    Raises:
      UsageError: the file, a key or a value is wrong.
    """
    return load(options.config, given_overrides(options, tree), tree)
