"""Studies by name: the built-in ones are the modules of ``study.studies``, each with ``STUDY``."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path

from unihetero_jax.config import user_files
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.study import studies
from unihetero_jax.study.definition import Study


def names() -> list[str]:
    """Return the names of the built-in studies, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(studies.__path__))


def built_in() -> dict[str, Study]:
    """Return the built-in studies by name."""
    return {name: find(name) for name in names()}


def find(name: str) -> Study:
    """Return a study.

    Args:
      name: name of a built-in study, or path of a Python file that defines ``STUDY``.

    Raises:
      UsageError: there is no such study; says the nearest name.
    """
    if name.endswith(".py"):
        found = user_files.attribute(Path(name), "STUDY")
        if not isinstance(found, Study):
            raise UsageError(f"{name}: STUDY is {type(found).__name__}: expected unihetero_jax.study.Study")
        if found.name in names():
            raise UsageError(f"{name}: STUDY has the name {found.name!r} of a built-in study: expected another name")
        return dataclasses.replace(found, file=name)
    if name not in names():
        raise UsageError(
            f"no study {name!r}: expected {', '.join(names())} or a FILE.py with STUDY{nearest(name, names())}"
        )
    study: Study = importlib.import_module(f"{studies.__name__}.{name}").STUDY
    return study
