"""Sections whose sizes a preset fixes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from unihetero_jax.errors import UsageError, nearest

Section = TypeVar("Section")


def completed(
    section: Section, base: type, presets: Mapping[str, Mapping[str, Any]], use: Collection[str], key: str
) -> Section:
    """Return a section with the sizes of its preset.

    Args:
      section: with a field ``preset``, which is empty or the name of a preset.
      base: the section of every component of its sort, whose fields are no sizes.
      presets: sizes by name.
      use: fields that describe the component's use, which a preset leaves free.
      key: where the section is.

    Raises:
      UsageError: there is no such preset, or a size beside it is another one.
    """
    values: Any = section
    if not values.preset:
        return section
    if values.preset not in presets:
        raise UsageError(
            f"{key}.preset={values.preset!r}: expected one of {', '.join(presets) or 'none'} with "
            f"{key}.kind={values.kind!r}{nearest(values.preset, presets)}"
        )
    sizes = presets[values.preset]
    changes: dict[str, Any] = {}
    free = {"preset", *use, *(entry.name for entry in dataclasses.fields(base))}
    for entry in dataclasses.fields(values):
        if entry.name in free:
            continue
        fixed, given = sizes.get(entry.name, entry.default), getattr(values, entry.name)
        if given not in (entry.default, fixed):
            raise UsageError(
                f"{key}.{entry.name}={given!r} beside {key}.preset={values.preset!r}, which fixes it; leave one of "
                "them out"
            )
        changes[entry.name] = fixed
    return dataclasses.replace(values, **changes)
