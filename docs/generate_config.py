"""Write ``docs/config.md``, the config reference, from the dataclasses of the config.

    python docs/generate_config.py [--check]

``--check`` writes nothing and exits with code 1 when the file is not up to date.
"""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from unihetero_jax.config import Config
from unihetero_jax.config.constraints import FREE_ON_RESUME, PER_HOST
from unihetero_jax.config.descriptions import descriptions, summary
from unihetero_jax.config.tree import FieldType, fields_of, marked_keys
from unihetero_jax.train.towers.base import TRAINED_TOWERS

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

_ABSENT = "By default there is none, and `None` removes it."


class Reference:
    """The page, section by section; what was described once is referred to afterwards."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._described: dict[type, tuple[str, Any]] = {}

    def add(self, key: str, section: Any, level: int = 2, meaning: str = "") -> None:
        """Describe a section and the sections below it.

        Args:
          key: where it is, such as ``config.model``.
          section: the section with its defaults.
          level: of its heading.
          meaning: what its parent's docstring says about it.
        """
        self._heading(key, level, meaning)
        if type(section) in self._described:
            self._refer(key, section)
            return
        self._described[type(section)] = key, section
        self.lines += [markdown(summary(type(section))), ""]
        self.values(section)
        self.below(key, section, level + 1)

    def values(self, section: Any) -> None:
        """A table of the values of a section, without those of the sections below it."""
        texts = descriptions(type(section))
        rows = [
            (f"`{name}`", type_text(field), default(getattr(section, name)), markdown(texts.get(name, "")))
            for name, field in fields_of(type(section)).items()
            if not (field.is_section or field.table or _has_one_value(field))
        ]
        if rows:
            self.lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
            self.lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
            self.lines.append("")

    def _heading(self, key: str, level: int, meaning: str) -> None:
        self.lines += [f"{'#' * min(level, 4)} `{key}`", ""]
        if meaning:
            self.lines += [f"{meaning[0].upper()}{meaning[1:]}", ""]

    def below(self, key: str, section: Any, level: int, of: str = "") -> None:
        """Describe the sections below a section; ``of`` ends their headings."""
        texts = descriptions(type(section))
        for name, field in fields_of(type(section)).items():
            if not (field.is_section or field.table):
                continue
            place = f"{key}.{name}.NAME{of}" if field.table else f"{key}.{name}{of}"
            value = getattr(section, name)
            # Of other sections, the summary that follows says it.
            meaning = markdown(texts[name]) if field.optional or field.registry is not None else ""
            if field.registry is None:
                meaning += f" {_ABSENT}" if value is None else ""
                self.add(place, field.type() if field.table or value is None else value, level, meaning)
            else:
                self._heading(place, level, meaning)
                self._choice(place, field, value, level)

    def _choice(self, key: str, field: FieldType, value: Any, level: int) -> None:
        assert field.registry is not None
        kinds = field.registry.kinds()
        if not field.table:
            chosen = _ABSENT if value is None else f"The default is `{value.kind}`."
        else:
            chosen = (
                f"By default there are {_listed(value)}; `None` removes one." if value else "By default there are none."
            )
        article = "An" if field.registry.noun[0] in "aeiou" else "A"
        text = f"{article} {field.registry.noun}. `{key}.kind` is one of {_listed(kinds)}. {chosen}"
        self.lines += [text, ""]
        for kind in kinds:
            section = field.registry.config(kind)
            if section not in self._described:
                self.add(f"{key} (kind={kind})", section(), level + 1)

    def _refer(self, key: str, section: Any) -> None:
        place, first = self._described[type(section)]
        self.lines += [f"The keys of [`{place}`](#{anchor(place)})."]
        if differing := list(_differing(first, section)):
            self.lines += ["Defaults that differ:", ""]
            self.lines += [f"- `{key}.{name}` = {default(value)}" for name, value in differing]
        self.lines.append("")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _has_one_value(field: FieldType) -> bool:
    return typing.get_origin(field.type) is Literal and len(typing.get_args(field.type)) == 1


def _differing(first: Any, second: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each default of ``second`` that is another in ``first``."""
    for name, field in fields_of(type(first)).items():
        old, new = getattr(first, name), getattr(second, name)
        if field.is_section and type(old) is type(new):
            yield from _differing(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", getattr(new, "kind", new) if field.is_section else new


def anchor(key: str) -> str:
    """The anchor that MyST gives to the heading of a key."""
    return re.sub(r"[^\w\- ]", "", key.lower()).replace(" ", "-")


def type_text(field: FieldType) -> str:
    """The type of a field, and which of its values are allowed."""
    kind = field.type
    if field.registry is not None:
        text = f"one of {_listed([*field.registry.others, *field.registry.kinds()])}"
    elif typing.get_origin(kind) is Literal:
        text = f"one of {_listed(map(str, typing.get_args(kind)))}"
    elif typing.get_origin(kind) is tuple:
        text = "integers" if typing.get_args(kind)[0] is int else "names"
    else:
        text = {int: "integer", float: "number", bool: "true or false", str: "text"}[kind]
    if field.bound is None:
        return text
    expected = field.bound.expected
    return f"{text} {expected.removeprefix('a value ')}" if expected.startswith("a value ") else f"{text}, {expected}"


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
    page.lines += [INTRODUCTION]
    for mark in (FREE_ON_RESUME, PER_HOST):
        page.lines += [f"What {mark.meaning}, with all keys below: {_listed(marked_keys(Config, mark))}.", ""]
    page.values(Config())
    page.below("config", Config(), 2)
    page.lines += [TOWERS]
    for kind in TRAINED_TOWERS.kinds():
        section = TRAINED_TOWERS.config(kind)
        page.lines += [f"### `{kind}`", "", markdown(summary(section)), ""]
        page.values(section())
        page.below("config", section(), 4, of=f" ({kind})")
    return "\n".join(page.lines).rstrip() + "\n"


if __name__ == "__main__":
    made = generate()
    if "--check" in sys.argv[1:]:
        sys.exit(f"{TARGET} is not up to date: run {sys.argv[0]}" if TARGET.read_text(encoding="utf-8") != made else 0)
    TARGET.write_text(made, encoding="utf-8")
