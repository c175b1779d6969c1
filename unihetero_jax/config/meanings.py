"""The meaning of each config key, from the ``Attributes:`` block of its section's docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from unihetero_jax.config.registry import is_registered
from unihetero_jax.config.tree import leaves, lookup

_KIND = "the component; it decides which further keys there are."


def meanings(section: type) -> dict[str, str]:
    """The text of each field in the docstring of a section, and in those of the classes it inherits from.

    Args:
      section: a config dataclass whose docstring has an ``Attributes:`` block in Google style.

    Returns:
      Each text as one line, by field; fields that are not documented are left out.
    """
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        found |= dict(_entries(inspect.cleandoc(base.__doc__ or "")))
    return found


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
    block = re.search(r"^Attributes:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.M)
    if block is None:
        return
    indent = re.match(r"\s*", block[1].lstrip("\n"))
    assert indent is not None, "the pattern matches anything"
    # An entry begins at the block's own indent; its further lines are deeper.
    for entry in re.split(rf"^{indent[0]}(?=\S)", block[1], flags=re.M):
        name, colon, text = entry.partition(":")
        if colon:
            yield name.strip(), " ".join(text.split())


def key_meanings(config: Any) -> dict[str, str]:
    """The meaning of every key of a config, by its dotted name; empty where none is written down.

    Args:
      config: the root section.
    """
    found = {}
    for key, _, _ in leaves(config):
        parent, _, name = key.rpartition(".")
        section = lookup(config, parent) if parent else config
        given = meanings(type(section))
        found[key] = given.get(name, _KIND if name == "kind" and is_registered(section) else "")
    return found
