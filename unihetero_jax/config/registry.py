"""Registries: components found by the name that a config gives them.

A built-in component is a module or folder of its registry's package and is imported when it is first asked for. A
user's own registers itself when its file is imported (``config.imports``), and is used in the same way from then on.

A component may have a config section, a dataclass that imports neither JAX nor Flax, so that a config is read without
them: ``PACKAGE/KIND/config.py`` registers the section and another module of the folder the component. What fits one
file is ``PACKAGE/KIND.py``, and registers both.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from unihetero_jax.errors import UsageError, nearest

Component = TypeVar("Component")
_Class = TypeVar("_Class", bound=type)
_Any = TypeVar("_Any")

# Modules of a package that hold what its kinds share.
_SHARED = ("base", "common")


class Registry(Generic[Component]):
    """The components of one sort.

    Args:
      noun: what one of them is called in error messages, such as ``tower``.
      package: where the built-in ones are, such as ``unihetero_jax.towers``.
      module: the module of a built-in folder that registers the component; its ``config`` registers the section.
      default: the kind of a new entry of a table that names none.
      others: names that a config may give besides those of components, such as ``auto``.
    """

    def __init__(self, noun: str, package: str, module: str = "", default: str = "", others: tuple[str, ...] = ()):
        self.noun, self.package, self.default, self.others = noun, package, default, others
        self._module = module
        self._sections: dict[str, type] = {}
        self._components: dict[str, Component] = {}

    def __repr__(self) -> str:
        return f"Registry({self.noun!r})"

    def section(self, kind: str) -> Callable[[_Class], _Class]:
        """Register a dataclass as the config section of ``kind``, as a decorator; sets its ``kind``.

        Raises:
          UsageError: the kind is taken.
        """

        def register(section: _Class) -> _Class:
            self._add(self._sections, kind, section)
            section.kind = kind  # type: ignore[attr-defined]
            return section

        return register

    def register(self, kind: str, config: type | None = None) -> Callable[[_Any], _Any]:
        """Register a component under ``kind``, with its config section if given, as a decorator.

        Raises:
          UsageError: the kind is taken.
        """

        def register(component: _Any) -> _Any:
            if config is not None:
                self.section(kind)(config)
            self._add(self._components, kind, component)
            return component

        return register

    def _add(self, entries: dict[str, Any], kind: str, entry: Any) -> None:
        other = entries.get(kind)
        # The same definition again is a file that was loaded twice.
        if other is not None and (other.__qualname__, _file(other)) != (entry.__qualname__, _file(entry)):
            raise UsageError(
                f"{self.noun} {kind!r} is registered by {_file(entry)} and already by {_file(other)}: expected "
                "another name"
            )
        entries[kind] = entry

    def kinds(self) -> list[str]:
        """Return the names of the components: built-in ones, and those registered so far."""
        return sorted(self._builtin() | self._sections.keys() | self._components.keys())

    def sections(self) -> dict[str, Any]:
        """Return the config section of each kind that has one, by kind; every built-in kind of the registry must."""
        for kind in self._builtin() - self._sections.keys():
            self.config(kind)
        return dict(sorted(self._sections.items()))

    def _builtin(self) -> set[str]:
        package = importlib.import_module(self.package)
        names = {module.name for module in pkgutil.iter_modules(package.__path__)}
        return {name for name in names if name not in _SHARED and not name.startswith("_")}

    def names(self) -> list[str]:
        """Return what a config may give as the name of a component."""
        return [*self.others, *self.kinds()]

    def is_kind(self, name: str) -> bool:
        """Return whether there is a component of this name."""
        return name in self._sections or name in self._components or name in self.kinds()

    def config(self, kind: str, key: str = "") -> Any:
        """Return the config section of a kind; imports neither JAX nor Flax for a built-in one.

        Args:
          kind: of the component.
          key: where it was asked for, for the error message.

        Raises:
          UsageError: there is no such kind; names the nearest.
        """
        if kind not in self._sections:
            self._import(kind, key, "config")
        return self._sections[kind]

    def find(self, kind: str, key: str = "") -> Component:
        """Return the component of a kind.

        Args:
          kind: of the component.
          key: where it was asked for, for the error message.

        Raises:
          UsageError: there is no such kind; names the nearest.
        """
        if kind not in self._components:
            self._import(kind, key, self._module)
        return self._components[kind]

    def source(self, kind: str) -> str:
        """Return the file that registered a kind, built-in or not."""
        entry: Any = self._sections.get(kind) or self._components.get(kind)
        return _file(entry)

    def _import(self, kind: str, key: str, module: str) -> None:
        if not isinstance(kind, str) or not self.is_kind(kind):
            where = f"{key}={kind!r}" if key else f"{self.noun} {kind!r}"
            hint = nearest(str(kind), self.names())
            own = "" if hint else "; your own is registered by a file that config.imports names"
            raise UsageError(f"{where}: expected one of {', '.join(map(repr, self.names()))}{hint}{own}")
        folder = importlib.util.find_spec(f"{self.package}.{kind}")
        assert folder is not None, kind
        inner = f".{module}" if folder.submodule_search_locations is not None and module else ""
        importlib.import_module(f"{self.package}.{kind}{inner}")


def _file(entry: Any) -> str:
    try:
        return inspect.getfile(entry)
    except TypeError:
        return str(getattr(entry, "__module__", "?"))


def is_registered(section: Any) -> bool:
    """Return whether a section (or its class) is that of a registered component."""
    return (
        dataclasses.is_dataclass(section)
        and bool(getattr(section, "kind", ""))
        and "kind" not in {entry.name for entry in dataclasses.fields(section)}
    )
