"""Write ``docs/config.md``, the config reference, from the dataclasses of the config.

    python docs/generate_config.py

A test compares the file with what this would write.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from unihetero_jax.config import Config
from unihetero_jax.config.descriptions import descriptions, summary
from unihetero_jax.train.towers.config import ROOTS

TARGET = Path(__file__).with_name("config.md")

INTRODUCTION = """\
# Config reference

Every key of an experiment, with its type, its default and its meaning. Set a key in the experiment's file
(`config.train.steps = 10`) or on the command line (`--config.train.steps=10`). [Change an
experiment](howto/configure.md) has examples.

This page is generated from the config dataclasses by `python docs/generate_config.py`.

`NAME` stands for a name of your choice. Sections that occur in several places are described once.
"""
TOWERS = """\
## Configs of `unihetero towers train`

Each kind of tower has a config of its own. Sections that all runs have are described above; defaults that differ are
listed.
"""


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a section.

    Attributes:
      name: its name.
      type: without ``Annotated`` and, in a table, the type of an entry.
      table: whether it holds sections by name.
      constraint: which values of the type are allowed.
      registry: of a choice of components; None for other fields.
    """

    name: str
    type: Any
    table: bool
    constraint: str
    registry: Any

    @property
    def is_section(self) -> bool:
        """Whether its keys are below it."""
        return dataclasses.is_dataclass(self.type)


def fields(section: type) -> list[Field]:
    """The fields of a section, in order."""
    hints = typing.get_type_hints(section, include_extras=True)
    return [_field(entry.name, hints[entry.name]) for entry in dataclasses.fields(section)]


def _field(name: str, hint: Any) -> Field:
    table = typing.get_origin(hint) is dict
    if table:
        hint = typing.get_args(hint)[1]
    extras: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        hint, *rest = typing.get_args(hint)
        extras = tuple(rest)
    constraint = next((extra.expected for extra in extras if hasattr(extra, "expected")), "")
    registry = next((extra for extra in extras if hasattr(extra, "kinds")), None)
    return Field(name, hint, table, constraint, registry)


class Reference:
    """The page, section by section; what was described once is referred to afterwards."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._described: dict[type, tuple[str, Any]] = {}

    def add(self, key: str, section: Any, level: int = 2) -> None:
        """Describe a section and the sections below it.

        Args:
          key: where it is, such as ``config.model``.
          section: the section with its defaults.
          level: of its heading.
        """
        if type(section) in self._described:
            self._refer(key, section, level)
            return
        self._described[type(section)] = key, section
        known = fields(type(section))
        self.lines += [f"{'#' * min(level, 4)} `{key}`", "", markdown(summary(type(section))), ""]
        self._table(key, section, [field for field in known if not field.is_section])
        for field in known:
            if field.is_section:
                self._below(f"{key}.{field.name}", field, getattr(section, field.name), level + 1)

    def _below(self, key: str, field: Field, value: Any, level: int) -> None:
        key = f"{key}.NAME" if field.table else key
        if field.registry is None:
            self.add(key, field.type() if field.table else value, level)
            return
        kinds = field.registry.kinds()
        chosen = "" if field.table else f" The default is `{value.kind}`."
        self.lines += [f"{'#' * min(level, 4)} `{key}`", ""]
        self.lines += [f"A {field.registry.noun}. `{key}.kind` is one of {', '.join(f'`{kind}`' for kind in kinds)}.{chosen}", ""]
        for kind in kinds:
            section = field.registry.config(kind)
            if section not in self._described:
                self.add(f"{key} (kind={kind})", section(), level + 1)

    def _refer(self, key: str, section: Any, level: int) -> None:
        place, first = self._described[type(section)]
        self.lines += [f"{'#' * min(level, 4)} `{key}`", "", f"The keys of [`{place}`](#{anchor(place)})."]
        if differing := list(_differing(first, section)):
            self.lines += ["Defaults that differ:", ""]
            self.lines += [f"- `{key}.{name}` = {default(value)}" for name, value in differing]
        self.lines.append("")

    def _table(self, key: str, section: Any, values: list[Field]) -> None:
        if not values:
            return
        texts = descriptions(type(section))
        self.lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for field in values:
            text = markdown(texts.get(field.name, ""))
            cells = f"`{field.name}`", type_text(field), default(getattr(section, field.name)), text
            self.lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        self.lines.append("")


def _differing(first: Any, second: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each default of ``second`` that is another in ``first``."""
    for field in fields(type(first)):
        old, new = getattr(first, field.name), getattr(second, field.name)
        if field.is_section and not field.table and type(old) is type(new):
            yield from _differing(old, new, f"{prefix}{field.name}.")
        elif old != new:
            yield f"{prefix}{field.name}", getattr(new, "kind", new) if field.is_section else new


def anchor(key: str) -> str:
    """The anchor that MyST gives to the heading of a key."""
    return re.sub(r"[^\w\- ]", "", key.lower()).replace(" ", "-")


def type_text(field: Field) -> str:
    """The type of a field, and which of its values are allowed."""
    kind = field.type
    if field.registry is not None:
        text = "one of " + ", ".join(f"`{name}`" for name in field.registry.kinds())
    elif typing.get_origin(kind) is Literal:
        text = "one of " + ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    elif typing.get_origin(kind) is tuple:
        text = "integers" if typing.get_args(kind)[0] is int else "names"
    elif isinstance(kind, types.UnionType):
        text = " or ".join(part.__name__ for part in typing.get_args(kind))
    else:
        text = {int: "integer", float: "number", bool: "true or false", str: "text"}[kind]
    return f"{text}, {field.constraint}" if field.constraint else text


def default(value: Any) -> str:
    """A default, as it is typed on the command line."""
    if value == "" or value == ():
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{value}`"


def markdown(text: str) -> str:
    """The text of a docstring as Markdown."""
    return text.replace("``", "`").replace("<", "&lt;")


def generate() -> str:
    """The text of the page."""
    page = Reference()
    root = Config()
    known = fields(Config)
    page.lines += [INTRODUCTION]
    page._table("config", root, [field for field in known if not field.is_section])
    for field in known:
        if field.is_section:
            page._below(f"config.{field.name}", field, getattr(root, field.name), 2)
    page.lines += [TOWERS]
    for kind, section in ROOTS.items():
        page.lines += [f"### `{kind}`", "", markdown(summary(section)), ""]
        defaults = section()
        own = [field for field in fields(section) if field.name != "kind"]
        page._table("config", defaults, [field for field in own if not field.is_section])
        for field in own:
            if field.is_section:
                page._below(f"config.{field.name} ({kind})", field, getattr(defaults, field.name), 4)
    return "\n".join(page.lines).rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
    sys.stdout.write(f"wrote {TARGET}\n")
