"""``unihetero config``."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from unihetero_jax.commands.arguments import path
from unihetero_jax.commands.overrides import allow_overrides, load_config
from unihetero_jax.config.descriptions import descriptions
from unihetero_jax.config.loading import UNIFIED, read
from unihetero_jax.config.tree import leaves, lookup
from unihetero_jax.train.towers import base as tower_config

_DETAILS = """\
Each key is printed with its value and its meaning, with * before it where the value is not the default. The --json form
is a config: written to a file, it can be given back as --config.

examples:
  unihetero config quickstart
  unihetero config configs/unihetero_7b.py --config.train.batch_size=512
  unihetero config runs/watch/config.json --json
"""

_KIND = "The component; its own keys follow."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, and the function that runs the verb."""
    parser.usage = "unihetero config [-h] FILE|NAME [--json] [--config.SECTION.KEY=VALUE ...]"
    parser.epilog = _DETAILS
    parser.add_argument(
        "config",
        type=path,
        metavar="FILE|NAME",
        help="a Python file with get_config(), the name of an experiment, or the config.json of a run",
    )
    parser.add_argument("--json", action="store_true", help="print the config as one JSON object (default: no)")
    allow_overrides(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    kind = str(read(options.config).get("kind"))
    tree = tower_config.tree(kind) if tower_config.TRAINED_TOWERS.is_kind(kind) else UNIFIED
    config = load_config(options, tree)
    print(json.dumps(config.to_dict(), indent=2) if options.json else _format(config, tree.default()))
    return 0


def _format(config: Any, default: Any) -> str:
    usual = {key: value for key, _, value in leaves(default)}
    lines = []
    for key, _, value in leaves(config):
        mark = " " if key in usual and usual[key] == value else "*"
        lines.append(f"{mark} {key} = {json.dumps(value)}")
        parent, _, name = key.rpartition(".")
        section = lookup(config, parent) if parent else config
        meaning = descriptions(type(section)).get(name, _KIND if name == "kind" else "")
        lines += textwrap.wrap(meaning, 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
