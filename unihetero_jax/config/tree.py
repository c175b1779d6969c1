"""Trees of config sections: a dataclass per section, whose fields are typed values or further sections.

A field may be

- a value: ``bool``, ``int``, ``float``, ``str``, a ``Literal``, a tuple of integers or strings; ``config.constraints``
  has types that allow only some values;
- a section: another dataclass;
- a choice: ``Annotated[Base, REGISTRY]``, the section of one of the registry's components, which its ``kind`` names;
- a section or a choice that may be absent, ``… | None``: ``None``, or ``none`` on the command line, removes it;
- a table: ``dict[str, Section]`` or ``dict[str, Annotated[Base, REGISTRY]]``, sections under names of the user's
  choice. ``None`` in the place of an entry removes it;
- the name of a component without a section: ``Annotated[str, REGISTRY]``.

An annotation may also hold a ``config.constraints.Mark``, for the field and everything below it.

A section may have a method ``check(key)`` that raises ``UsageError`` for values that contradict each other, and a
method ``completed(key)`` that gives the section with what follows from its values, such as a preset's sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from unihetero_jax.config.constraints import Bound, Mark
from unihetero_jax.config.registry import Registry, is_registered
from unihetero_jax.config.renamed_keys import successor
from unihetero_jax.errors import UsageError, nearest

# Beyond this a number in a config is a slip or an infinity.
_LARGEST = 1e30


class Table(dict[str, Any]):
    """Sections by name, also as attributes. It has a hash like every other part of a config; do not change it."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no entry {name!r}; there are {', '.join(self) or 'none'}")

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))


@dataclass(frozen=True)
class FieldType:
    """What a field of a section may hold.

    Attributes:
      type: the type of the value; of a section its dataclass; of a choice the base of its sections.
      table: whether there are any number of them, by name.
      optional: whether it may be None.
      bound: a condition on the value.
      registry: of a choice, or of a component's name.
      marks: where its values may differ.
    """

    type: Any
    table: bool = False
    optional: bool = False
    bound: Bound | None = None
    registry: Registry[Any] | None = None
    marks: tuple[Mark, ...] = ()

    @property
    def is_section(self) -> bool:
        """Whether it is a section or a choice of one."""
        return dataclasses.is_dataclass(self.type) and not self.table

    def describe(self) -> str:
        """Format the type for an error message: ``an integer``, ``one of 'a', 'b'``."""
        if self.registry is not None:
            return "one of " + ", ".join(map(repr, self.registry.names()))
        return describe(self.type)


@functools.cache
def _fields_of(section: Hashable) -> dict[str, FieldType]:
    hints = typing.get_type_hints(section, include_extras=True)
    return {entry.name: _field_type(hints[entry.name]) for entry in dataclasses.fields(section)}  # type: ignore[arg-type]


def fields_of(section: type) -> dict[str, FieldType]:
    """Return the type of each field of a config dataclass."""
    return _fields_of(section)


def _field_type(hint: Any) -> FieldType:
    if typing.get_origin(hint) is dict:
        return dataclasses.replace(_field_type(typing.get_args(hint)[1]), table=True)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner, _ = typing.get_args(hint)
        return dataclasses.replace(_field_type(inner), optional=True)
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        marks = [extra for extra in extras if isinstance(extra, Mark)]
        found = _field_type(inner)
        return dataclasses.replace(
            found,
            bound=next((extra for extra in extras if isinstance(extra, Bound)), found.bound),
            registry=next((extra for extra in extras if isinstance(extra, Registry)), found.registry),
            marks=(*marks, *(other for mark in marks for other in mark.implies)),
        )
    return FieldType(hint)


def describe(kind: Any) -> str:
    """Format a type for an error message: ``an integer``, ``one of 'a', 'b'``."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return ("integers" if typing.get_args(kind)[0] is int else "names") + " separated by commas"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]


def check_value(key: str, field: FieldType, value: Any) -> Any:
    """Return ``value`` as a field's type; an integer may stand for a float, a NumPy scalar for its Python value.

    Raises:
      UsageError: the value is of another type or is not one of the choices.
    """
    kind = field.type
    if isinstance(value, np.generic):
        value = value.item()
    if field.registry is not None:
        if not isinstance(value, str) or value not in field.registry.names():
            hint = nearest(str(value), field.registry.names())
            raise UsageError(f"{key}={value!r}: expected {field.describe()}{hint}")
        return value
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
        hint = nearest(str(value), [str(choice) for choice in typing.get_args(kind)])
        raise UsageError(f"{key}={value!r}: expected {describe(kind)}{hint}")
    if typing.get_origin(kind) is tuple:
        of = typing.get_args(kind)[0]
        if not isinstance(value, tuple | list) or any(type(part) is not of for part in value):
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


def build(base: Any, values: Any, key: str) -> Any:
    """Return a section with some of its values changed.

    Args:
      base: a section, or its class for one with its defaults.
      values: a (possibly partial) nested mapping; another ``kind`` starts from that kind's defaults.
      key: where the section is, such as ``config``.

    Raises:
      UsageError: naming the key below ``key``, what was expected and the nearest valid key.
    """
    if isinstance(base, type):
        base = base()
    if not isinstance(values, Mapping):
        raise UsageError(f"{key}={values!r}: expected a section with {', '.join(names(base))}")
    arguments = {}
    for name, value in values.items():
        if name == "kind" and is_registered(base):
            continue  # it chose ``base``
        field = fields_of(type(base)).get(name)
        if field is None:
            now = successor(f"{key}.{name}".removeprefix("config."))
            hint = f": {now}" if now else nearest(str(name), names(base))
            raise UsageError(f"unknown config key {key}.{name}{hint}")
        arguments[name] = _build_field(field, getattr(base, name), value, f"{key}.{name}")
    try:
        made = dataclasses.replace(base, **arguments)
        return made.completed(key) if hasattr(made, "completed") else made
    except UsageError as error:  # a section that checks itself when it is made knows its class, not its place
        raise UsageError(str(error).replace(f"{type(base).__name__}.", f"{key}.")) from None


def _build_field(field: FieldType, base: Any, value: Any, key: str) -> Any:
    if field.table:
        return _build_table(field, base, value, key)
    if value is None and field.optional:
        return None
    if field.is_section:
        return build(choose_section(field, base, value, key), value, key)
    return check_value(key, field, value)


def _build_table(field: FieldType, base: Table, values: Any, key: str) -> Table:
    if not isinstance(values, Mapping):
        raise UsageError(f"{key}={values!r}: expected sections by names of your choice")
    entries = dict(base)
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
            raise UsageError(f"{key}: {name!r} is not a name: expected letters, digits, '_' and '-'")
        if value is None:
            entries.pop(name, None)
            continue
        entry = choose_section(field, entries.get(name), value, f"{key}.{name}", name)
        entries[name] = build(entry, value, f"{key}.{name}")
    return Table(entries)


def choose_section(field: FieldType, base: Any, value: Any, key: str, name: str = "") -> Any:
    """Return the section to start from: ``base``, unless there is none or the value names another kind.

    Args:
      field: the type of a section, a choice or a table's entries.
      base: the section that is there; None: none.
      value: a nested mapping, perhaps with a ``kind``.
      key: where it is, for the error message.
      name: of a table's entry, whose kind it is if the value names none.

    Raises:
      UsageError: there is no such kind.
    """
    if field.registry is None:
        return field.type() if base is None else base
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind is None:
        if base is not None:
            return base
        kind = name if field.registry.is_kind(name) else field.registry.default
        if not kind:
            kinds = ", ".join(map(repr, field.registry.kinds()))
            raise UsageError(f"{key}: expected a kind, one of {kinds}{nearest(name, field.registry.kinds())}")
    if base is not None and base.kind == kind:
        return base
    return field.registry.config(kind, f"{key}.kind")()


def choose(base: Any, values: Any) -> Any:
    """Return ``base`` with the kinds and table entries that ``values`` choose; other values are ignored.

    Its keys are those that may be given.
    """
    if not isinstance(values, Mapping):
        return base
    changes: dict[str, Any] = {}
    for name, value in values.items():
        field = fields_of(type(base)).get(name)
        if field is None:
            continue
        old = getattr(base, name)
        if field.table and isinstance(value, Mapping):
            entries = dict(old)
            for entry, inner in value.items():
                if (made := _choose_section(field, entries.get(entry), inner, str(entry))) is not None:
                    entries[entry] = made
            changes[name] = Table(entries)
        elif field.is_section and not (value is None and field.optional):
            changes[name] = _choose_section(field, old, value)
    return dataclasses.replace(base, **changes) if changes else base


def _choose_section(field: FieldType, base: Any, value: Any, name: str = "") -> Any:
    try:
        return choose(choose_section(field, base, value, "", name), value)
    except UsageError:
        return base


def marked_keys(section: type, mark: Mark, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the fields with a mark, of a section's class; what is below them has it too."""
    for name, field in fields_of(section).items():
        if mark in field.marks:
            yield f"{prefix}{name}"
        elif field.is_section and field.registry is None:
            yield from marked_keys(field.type, mark, f"{prefix}{name}.")


def is_below(key: str, parents: Iterable[str]) -> bool:
    """Return whether a dotted key is one of ``parents`` or below one."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, FieldType, Any]]:
    """Yield dotted key, type and value of every value below a section, ``kind`` of registered sections included."""
    for name, field in fields_of(type(section)).items():
        value = getattr(section, name)
        if value is None:
            continue
        below = value.items() if field.table else [("", value)] if field.is_section else None
        if below is None:
            yield f"{prefix}{name}", field, value
            continue
        for entry, inner in below:
            key = f"{prefix}{name}.{entry}." if entry else f"{prefix}{name}."
            if is_registered(inner):
                yield f"{key}kind", FieldType(str, registry=field.registry), inner.kind
            yield from leaves(inner, key)


def sections(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and section of every section and table below a section; of a table or None the field's type."""
    for name, field in fields_of(type(section)).items():
        value, key = getattr(section, name), f"{prefix}{name}"
        if value is None:
            yield key, field
        elif field.table:
            yield key, field
            for entry, inner in value.items():
                yield f"{key}.{entry}", inner
                yield from sections(inner, f"{key}.{entry}.")
        elif field.is_section:
            yield key, value
            yield from sections(value, f"{key}.")


def optional_keys(section: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the sections that may be None."""
    for name, field in fields_of(type(section)).items():
        value, key = getattr(section, name), f"{prefix}{name}"
        if field.optional:
            yield key
        if field.is_section and value is not None:
            yield from optional_keys(value, f"{key}.")


def check(section: Any, key: str) -> None:
    """Refuse values outside their field's bound, and values that a section's own ``check`` finds contradictory.

    Raises:
      UsageError: naming the key and what was expected.
    """
    for name, field, value in leaves(section):
        if field.type is float and not -_LARGEST < value < _LARGEST:
            raise UsageError(f"{key}.{name}={value}: expected a finite number")
        if field.bound is not None and not field.bound.holds(value):
            raise UsageError(f"{key}.{name}={value}: expected {field.bound.expected}")
    for place, inner in [("", section), *sections(section)]:
        if dataclasses.is_dataclass(inner) and not isinstance(inner, FieldType) and hasattr(inner, "check"):
            inner.check(f"{key}.{place}" if place else key)


def to_values(section: Any) -> dict[str, Any]:
    """Return a section as nested plain dicts; registered sections begin with their ``kind``.

    An entry of a table's defaults that was removed is None, so that it stays removed.
    """
    values: dict[str, Any] = {"kind": section.kind} if is_registered(section) else {}
    for name, field in fields_of(type(section)).items():
        value = getattr(section, name)
        if field.table:
            removed = [entry for entry in _default_entries(type(section), name) if entry not in value]
            value = {entry: to_values(inner) for entry, inner in value.items()} | dict.fromkeys(removed)
        elif field.is_section and value is not None:
            value = to_values(value)
        values[name] = value
    return values


def _default_entries(section: type, name: str) -> list[str]:
    factory = next(entry.default_factory for entry in dataclasses.fields(section) if entry.name == name)
    return [] if factory is dataclasses.MISSING else list(factory())


def names(section: Any) -> list[str]:
    """Return the names of the fields of a section or its class; ``kind`` first where it is registered."""
    return [*(["kind"] if is_registered(section) else []), *(entry.name for entry in dataclasses.fields(section))]


def lookup(config: Any, key: str) -> Any:
    """Return the value of a dotted key in a config."""
    for name in key.split("."):
        config = config[name] if isinstance(config, Mapping) else getattr(config, name)
    return config


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nest the values of dotted keys; of two keys one of which is below the other, the longer counts."""
    result: dict[str, Any] = {}
    for key, value in sorted(values.items()):
        *parents, name = key.split(".")
        here = result
        for parent in parents:
            inner = here.get(parent)
            here = here.setdefault(parent, {}) if isinstance(inner, dict) or inner is None else {}
        here[name] = value
    return result


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two nested mappings."""
    keys: list[str] = []
    for name in sorted(set(old) | set(new)):
        left, right = old.get(name), new.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += difference(left, right, f"{prefix}{name}.")
        elif left != right or (name in old) != (name in new):
            keys.append(f"{prefix}{name}")
    return keys
