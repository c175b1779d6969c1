"""Trees of config sections, whatever they say: a dataclass a section, its fields typed values or further sections.

A field of type ``dict[str, Section]`` is a table: any number of sections, each under a name of the user's choice.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from unihetero_jax.errors import UsageError, nearest


class Table(dict[str, Any]):
    """Sections by name. Like every other part of a config it has a hash, and is not to be changed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))


def field_types(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and type of every value in the tree below a config dataclass; of tables nothing."""
    hints = typing.get_type_hints(section)
    for entry in dataclasses.fields(section):
        kind = hints[entry.name]
        if _is_section(kind):
            yield from field_types(kind, f"{prefix}{entry.name}.")
        elif table_section(kind) is None:
            yield f"{prefix}{entry.name}", kind


def tables(section: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Dotted key of every table in the tree below a config dataclass, and what its sections are."""
    hints = typing.get_type_hints(section)
    for entry in dataclasses.fields(section):
        kind = hints[entry.name]
        if _is_section(kind):
            yield from tables(kind, f"{prefix}{entry.name}.")
        elif (inner := table_section(kind)) is not None:
            yield f"{prefix}{entry.name}", inner


def table_section(kind: Any) -> type | None:
    """What the sections of a table are; None for a type that is no table."""
    if typing.get_origin(kind) is not dict:
        return None
    section: type = typing.get_args(kind)[1]
    return section


def _is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and isinstance(kind, type)


def describe(kind: Any) -> str:
    """A config type in words: ``an integer``, ``one of 'a', 'b'``."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "integers with commas between them"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]


def check_value(key: str, kind: Any, value: Any) -> Any:
    """``value`` as ``kind``: an integer may stand for a float.

    Raises:
      UsageError: when the value is of another type or is not one of the choices.
    """
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
        hint = nearest(str(value), [str(choice) for choice in typing.get_args(kind)])
        raise UsageError(f"{key}={value!r}: expected {describe(kind)}{hint}")
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple | list) or any(type(part) is not int for part in value):
            raise UsageError(f"{key}={value!r}: expected {describe(kind)}")
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UsageError(f"{key}: expected a finite number, got an integer of {value.bit_length()} bits") from None
    if type(value) is not kind:
        raise UsageError(f"{key}={value!r}: expected {describe(kind)}, got {type(value).__name__}")
    return value


def build(section: type, values: Any, key: str) -> Any:
    """A section from a (possibly partial) nested mapping.

    Raises:
      UsageError: naming the key below ``key``, what was expected and the nearest valid key.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{key}={values!r}: expected a section with {', '.join(names(section))}")
    hints = typing.get_type_hints(section)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise UsageError(f"unknown config key {key}.{name}{nearest(str(name), hints)}")
        kind = hints[name]
        if _is_section(kind):
            arguments[name] = build(kind, value, f"{key}.{name}")
        elif (inner := table_section(kind)) is not None:
            arguments[name] = _build_table(inner, value, f"{key}.{name}")
        else:
            arguments[name] = check_value(f"{key}.{name}", kind, value)
    try:
        return section(**arguments)
    except UsageError as error:  # a section that checks itself knows its class, not its place
        raise UsageError(str(error).replace(f"{section.__name__}.", f"{key}.")) from None


def _build_table(section: type, values: Any, key: str) -> Table:
    if not isinstance(values, Mapping):
        raise UsageError(f"{key}={values!r}: expected sections by names of your choice")
    for name in values:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
            raise UsageError(f"{key}: {name!r} is no name: expected letters, digits, '_' and '-'")
    return Table({name: build(section, value, f"{key}.{name}") for name, value in values.items()})


def names(section: type) -> list[str]:
    """Names of a section's fields."""
    return [entry.name for entry in dataclasses.fields(section)]


def lookup(config: Any, key: str) -> Any:
    """The value of a dotted key in a ``Config``."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings."""
    keys: list[str] = []
    for name in sorted(set(old) | set(new)):
        left, right = old.get(name), new.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += difference(left, right, f"{prefix}{name}.")
        elif left != right or (name in old) != (name in new):
            keys.append(f"{prefix}{name}")
    return keys
