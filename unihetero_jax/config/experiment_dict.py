"""The ``ConfigDict`` that an experiment's ``get_config()`` changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from unihetero_jax.config import user_files
from unihetero_jax.config.registry import is_registered
from unihetero_jax.config.tree import FieldType, choose_section, fields_of


class ExperimentDict(ml_collections.ConfigDict):
    """A locked ``ConfigDict`` with the keys of a section: unknown keys and wrong types raise when they are set.

    Where a section is a choice, its keys are those of its ``kind``: setting another ``kind``, or a dict with one, gives
    it the keys and defaults of that kind. Entries of a table are added as dicts; ``None`` in place of one removes it.
    """

    _field: FieldType | None = None
    _section: type | None = None

    def __setitem__(self, key: str, value: Any) -> None:
        field, old = self._field, self._fields.get(key)
        if field is not None and field.table:
            made = None if value is None else _entry(field, key, value)
            with self.ignore_type(), self.unlocked():
                super().__setitem__(key, made)
        elif field is not None and key == "kind" and old not in (None, value):
            self._switch(choose_section(field, None, {"kind": value}, "config"))
        elif (
            self._section is not None and (absent := fields_of(self._section).get(key)) is not None and absent.optional
        ):
            made = _entry(absent, key, value) if isinstance(value, Mapping | ml_collections.ConfigDict) else value
            with self.ignore_type():
                super().__setitem__(key, made)
        elif isinstance(old, ExperimentDict) and isinstance(value, Mapping):
            inner = old._field
            if inner is None or inner.table:
                _updated(old, value)
            else:
                with self.ignore_type():
                    super().__setitem__(key, _entry(inner, key, value))
        else:
            super().__setitem__(key, value)
            if key == "imports" and self._section is not None:
                # At once, so that the next line of the file can use what they register.
                user_files.import_components(value)

    def __delitem__(self, key: str) -> None:
        if self._field is not None and self._field.table:
            self[key] = None
        else:
            super().__delitem__(key)

    def _switch(self, section: Any) -> None:
        with self.unlocked():
            for name in list(self._fields):
                super().__delitem__(name)
            _fill(self, section)


def experiment_dict(section: Any, field: FieldType | None = None) -> ExperimentDict:
    """Return a section as a locked ``ExperimentDict``.

    Args:
      section: a config section, or the entries of a table.
      field: the type of the field that holds it, if it is a choice or a table.
    """
    made = ExperimentDict()
    _fill(made, section)
    object.__setattr__(made, "_field", field if field is not None and (field.table or field.registry) else None)
    return made.lock()


def _fill(made: ExperimentDict, section: Any) -> None:
    object.__setattr__(made, "_section", type(section))
    put = ml_collections.ConfigDict.__setitem__
    if is_registered(section):
        put(made, "kind", section.kind)
    for name, field in fields_of(type(section)).items():
        value = getattr(section, name)
        if field.table:
            table = ExperimentDict()
            for entry, inner in value.items():
                put(table, entry, experiment_dict(inner, _of_entry(field)))
            object.__setattr__(table, "_field", field)
            value = table
        elif field.is_section and value is not None:
            value = experiment_dict(value, field)
        put(made, name, value)


def _of_entry(field: FieldType) -> FieldType:
    return FieldType(field.type, registry=field.registry)


def _entry(field: FieldType, name: str, value: Any) -> ExperimentDict:
    """Return a table's entry, or the section of a choice, with some of its values given."""
    values = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else dict(value)
    section = choose_section(field, None, values, f"config.{name}", name)
    return _updated(experiment_dict(section, _of_entry(field)), values)


def _updated(made: ExperimentDict, values: Mapping[str, Any]) -> ExperimentDict:
    for name, value in values.items():
        made[name] = value
    return made
