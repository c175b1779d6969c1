"""From an experiment's file and the overrides beside it to a validated config.

``load("quickstart", {"train.steps": 10})`` works the same from the command line and from a notebook.
"""

from __future__ import annotations

import ast
import difflib
import json
import linecache
import os
import re
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections.config_dict import config_dict

from unihetero_jax.config import user_files
from unihetero_jax.config.experiments import find_experiment
from unihetero_jax.config.registry import is_registered
from unihetero_jax.config.renamed_keys import successor
from unihetero_jax.config.resolving import resolve
from unihetero_jax.config.sections import Config
from unihetero_jax.config.tree import (
    FieldType,
    check_value,
    choose,
    describe,
    leaves,
    names,
    nested,
    optional_keys,
    sections,
)
from unihetero_jax.errors import UsageError, nearest

_BOOLS = {"true": True, "True": True, "1": True, "yes": True, "false": False, "False": False, "0": False, "no": False}
_NONE = ("none", "None")


@dataclass(frozen=True)
class Tree:
    """Configs of one root.

    Attributes:
      default: makes the root section with its defaults.
      resolve: makes a validated config of nested values.
      check: refuses a file that is meant for another root, before its keys are found to be unknown.
    """

    default: Callable[[], Any]
    resolve: Callable[[Mapping[str, Any]], Any]
    check: Callable[[Mapping[str, Any]], None] = lambda values: None


UNIFIED = Tree(Config, resolve)


class Keys:
    """The keys that may be given, once the kinds are chosen.

    Args:
      section: the root section, whose tables and choices are those of the config in question.
    """

    def __init__(self, section: Any):
        self.types: dict[str, FieldType] = {key: field for key, field, _ in leaves(section)}
        if is_registered(section):
            self.types["kind"] = FieldType(str)
        self.sections: dict[str, Any] = dict(sections(section))
        self.optional = set(optional_keys(section))

    def type(self, key: str) -> FieldType:
        """Return the type of a dotted key.

        Raises:
          UsageError: there is no such key (names the nearest), or it is a section (lists its keys).
        """
        if key in self.types:
            return self.types[key]
        if key in self.sections:
            inside = [f"config.{name}" for name in self.types if name.startswith(f"{key}.")]
            if isinstance(self.sections[key], FieldType) and not inside:
                inside = [f"config.{key}.NAME.{name}" for name in names(self.sections[key].type)]
            raise UsageError(f"config.{key} is a section, not a value: expected one of its keys, {', '.join(inside)}")
        raise self.unknown(key)

    def unknown(self, key: str) -> UsageError:
        """Return the error for a key that does not exist."""
        if now := successor(key):
            return UsageError(f"unknown config key config.{key}: {now}")
        close = self._closest(key)
        top = ", ".join(f"config.{section}" for section in self.sections if "." not in section)
        hint = f"; did you mean 'config.{close}'?" if close else f": expected a key in {top}"
        return UsageError(f"unknown config key config.{key}{hint}")

    def _closest(self, key: str) -> str | None:
        """Return the valid key or section that was most likely meant.

        Who writes ``config.mode`` forgot the section of ``config.data.mode``, although ``config.model`` is close.
        Otherwise slips within the right section count most, then slips in a name wherever it lives, then slips
        anywhere.
        """
        valid = [*self.types, *self.sections]
        parent, _, name = key.rpartition(".")

        def best(wanted: str, choices: Iterable[str], cutoff: float) -> str | None:
            return next(iter(difflib.get_close_matches(wanted, list(choices), n=1, cutoff=cutoff)), None)

        def named(wanted: str | None, choices: Iterable[str]) -> str | None:
            return best(key, [choice for choice in choices if choice.rpartition(".")[2] == wanted], cutoff=0.0)

        siblings = [choice for choice in valid if choice.rpartition(".")[0] == parent]
        return (
            named(None if parent else name, valid)
            or named(best(name, [choice.rpartition(".")[2] for choice in siblings], cutoff=0.6), siblings)
            or named(best(name, [choice.rpartition(".")[2] for choice in valid], cutoff=0.75), valid)
            or best(key, valid, cutoff=0.6)
        )

    def refuse_unknown(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Refuse unknown keys, with a hint that covers more than the section in which the key was written.

        Raises:
          UsageError: naming the first.
        """
        for name, value in values.items():
            key = f"{prefix}{name}"
            if key not in self.types and key not in self.sections:
                if value is None and isinstance(self.sections.get(prefix[:-1]), FieldType):
                    continue  # an entry that is removed
                raise self._of_another_kind(key, values, prefix) or self.unknown(key)
            if isinstance(value, Mapping) and key in self.sections:
                self.refuse_unknown(value, f"{key}.")

    def _of_another_kind(self, key: str, values: Mapping[str, Any], prefix: str) -> UsageError | None:
        section = self.sections.get(prefix[:-1])
        kind = values.get("kind")
        slip = nearest(key.rpartition(".")[2], names(section)) if section is not None else ""
        if kind is None or section is None or len(values) < 2 or slip or successor(key):
            return None
        return UsageError(
            f"config.{key} is not a key of kind={kind!r}, which has {', '.join(names(section))}. Another kind is given "
            f"as a dict of its own: config.{prefix[:-1]} = {{'kind': {kind!r}}}"
        )


def load(
    path: str | os.PathLike[str],
    overrides: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    tree: Tree | None = None,
) -> Any:
    """Load the experiment of a config file, with overrides on top.

    Args:
      path: a Python file whose ``get_config()`` returns ``unihetero_jax.config.defaults()``, changed, or a (possibly
        partial) nested dict; the ``config.json`` of a run; or the name of an experiment that comes with the package,
        such as ``quickstart``.
      overrides: dotted keys without the leading ``config.``, and their values; a string is read as it would be typed
        on the command line.
      tree: what is configured; by default the unified model.

    Raises:
      UsageError: naming the file and line, or the override, what was expected and the nearest valid name.
    """
    tree = tree or UNIFIED
    place = find_experiment(path)
    values, given = read(place, tree), _once(overrides)
    if imports := user_files.import_components(_imports(values, given), place.parent):
        # With absolute paths: the run is continued and evaluated from other folders.
        values["imports"] = imports
        given.pop("imports", None)
    keys, changes = _parsed(values, given, tree)
    try:
        _check(values, tree, keys)
        return tree.resolve(_with_changes(values, changes))
    except UsageError as error:
        # Values that clash only once the overrides are in are not the file's fault, so it is not named for them.
        where = f"{place}: " if str(error) == _complaint(values, tree) else ""
        raise UsageError(f"{where}{error}") from None


# The sections that another evaluation of a trained model may change.
EVALUATION = ("evaluate", "evaluators")


def change(
    config: Config, overrides: Mapping[str, Any] | Iterable[tuple[str, Any]], within: Sequence[str] = ()
) -> Config:
    """Return a resolved config with other values.

    Args:
      config: what ``load`` returns.
      overrides: as for ``load``.
      within: the sections that may be changed; all by default.

    Raises:
      UsageError: naming the override, what was expected and the nearest valid name.
    """
    values, given = config.to_dict(), _once(overrides)
    for key in given:
        if within and key.partition(".")[0] not in within:
            expected = " or ".join(f"config.{section}" for section in within)
            raise UsageError(f"config.{key} cannot be changed any more: expected a key of {expected}")
    _, changes = _parsed(values, given, UNIFIED)
    return resolve(_with_changes(values, changes))


def _once(overrides: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for key, value in overrides.items() if isinstance(overrides, Mapping) else overrides:
        if key in given:
            raise UsageError(f"config.{key} is given twice: expected one value for a key")
        given[key] = value
    return given


def _parsed(values: dict[str, Any], given: Mapping[str, Any], tree: Tree) -> tuple[Keys, dict[str, Any]]:
    """Return the valid keys beside ``values``, and the overrides' values; changes ``values`` of other kinds."""
    _choose_kinds(values, given, tree)
    keys = Keys(choose(choose(tree.default(), values), nested(given)))
    return keys, {key: _parse(key, value, keys) for key, value in given.items()}


def _imports(values: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ``imports`` of a file and its overrides; other types are refused when the config is resolved."""
    found = given.get("imports", values.get("imports", ()))
    if isinstance(found, str):
        found = _parts(found)
    return tuple(name for name in found if isinstance(name, str)) if isinstance(found, tuple | list) else ()


def _choose_kinds(values: dict[str, Any], given: Mapping[str, Any], tree: Tree) -> None:
    """Drop the file's values of its own kind where an override chooses another kind."""
    for key in sorted(key for key in given if key.rpartition(".")[2] == "kind"):
        *parents, _ = key.split(".")
        chosen: Any = choose(tree.default(), values)
        here = values
        for name in parents[:-1]:
            chosen = chosen.get(name) if isinstance(chosen, Mapping) else getattr(chosen, name, None)
            inner = here.setdefault(name, {})
            if not isinstance(inner, dict):
                return
            here = inner
        name = parents[-1] if parents else ""
        section = chosen.get(name) if isinstance(chosen, Mapping) else getattr(chosen, name, None)
        if parents and getattr(section, "kind", given[key]) != given[key]:
            here[name] = {}


def parse(key: str, text: str, tree: Tree | None = None) -> Any:
    """Parse ``text`` by the type of a dotted config key.

    Raises:
      UsageError: the key is unknown or a section, or the text is not a value of its type.
    """
    return _parse(key, text, Keys(choose((tree or UNIFIED).default(), nested({key: text}))))


def value_type(key: str, tree: Tree | None = None) -> FieldType:
    """Return the type of a dotted config key.

    Raises:
      UsageError: there is no such key (names the nearest), or it is a section (lists its keys).
    """
    return Keys(choose((tree or UNIFIED).default(), nested({key: {}}))).type(key)


def _parse(key: str, text: Any, keys: Keys) -> Any:
    parent = keys.sections.get(key.rpartition(".")[0])
    if (text is None or text in _NONE) and ((isinstance(parent, FieldType) and parent.table) or key in keys.optional):
        return None
    entry, _, name = key.rpartition(".")
    table = keys.sections.get(entry.rpartition(".")[0])
    if name == "kind" and key not in keys.types and isinstance(table, FieldType) and table.registry is not None:
        table.registry.config(text, f"config.{key}")  # an entry's kind that is unknown: names the nearest
    field = keys.type(key)
    if not isinstance(text, str):
        return check_value(f"config.{key}", field, text)
    kind = field.type
    if kind is bool:
        if text not in _BOOLS:
            raise UsageError(f"config.{key}={text}: expected true or false (or 1, 0, yes, no)")
        return _BOOLS[text]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise UsageError(f"config.{key}={text}: expected {describe(kind)}") from None
    if typing.get_origin(kind) is tuple:
        inside = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text or "nothing"
        of = typing.get_args(kind)[0]
        try:
            return tuple(of(part) for part in _parts(inside))
        except ValueError:
            raise UsageError(f"config.{key}={text}: expected {describe(kind)}") from None
    return check_value(f"config.{key}", field, text)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("'\"") for part in text.strip("()[]").split(",") if part.strip())


def _check(values: Mapping[str, Any], tree: Tree, keys: Keys) -> None:
    tree.check(values)
    keys.refuse_unknown(values)


def _complaint(values: Mapping[str, Any], tree: Tree) -> str:
    """Return what is wrong with a file's values by themselves, or an empty string."""
    try:
        _check(values, tree, Keys(choose(tree.default(), values)))
        tree.resolve(values)
    except UsageError as error:
        return str(error)
    return ""


def _with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with dotted ``changes`` on top; ``values`` stays as it is."""
    result = _plain(values)
    for key, value in changes.items():
        *parents, name = key.split(".")
        section = result
        for part in parents:
            if section.get(part) is None:  # a section that may be absent
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                # The file put a value where a section belongs; ``resolve`` refuses that, so nothing may hide it here.
                return result
        section[name] = value
    return result


def _plain(values: Any) -> Any:
    """Convert a mapping or a ``ConfigDict``, which is not one, to nested plain dicts."""
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    if isinstance(values, Mapping):
        return {name: _plain(value) for name, value in values.items()}
    return values


def read(path: str | os.PathLike[str], tree: Tree = UNIFIED) -> dict[str, Any]:
    """Read the values of an experiment's file, as nested plain dicts.

    Args:
      path: a file or name, as for ``load``.
      tree: what is configured, for hints in error messages.

    Raises:
      UsageError: naming the file and line.
    """
    path = find_experiment(path)
    if path.suffix == ".json":
        return _read_json(path)
    explain = partial(explain_key, tree=tree)
    with user_files.executed(path, "get_config()", explain) as module:
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            hint = nearest("get_config", user_files.public_names(module))
            raise UsageError(f"{path}: expected a function get_config(){hint}")
        values = user_files.in_file(path, lambda: _plain(get_config()), explain)
    if not isinstance(values, dict):
        raise UsageError(
            f"{path}: get_config() returned {type(values).__name__}: expected unihetero_jax.config.defaults(), "
            "changed, or a dict"
        )
    return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: expected a config as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a config, a JSON object, got {type(values).__name__}")
    return values


def explain_key(error: BaseException, path: Path, line: int | None, tree: Tree = UNIFIED) -> str:
    """Explain an error inside a config file: the wrong key and what was expected, if ``ml_collections`` raised it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    text = user_files.message(error)
    linecache.checkcache(str(path))
    source = linecache.getline(str(path), line) if line else ""
    if absent := re.match(r"'NoneType' object has no attribute '(\w+)'", text):
        key, keys = _written_key(absent[1], path, line), Keys(tree.default())
        parent, _, name = key.rpartition(".")
        if parent in keys.optional and successor(key):
            return str(keys.unknown(key))
        if parent in keys.optional:
            return f"config.{parent} is None: expected a dict first, config.{parent} = {{'{name}': ...}}"
    if isinstance(error, UsageError) or not frames or frames[-1].f_code.co_filename != config_dict.__file__:
        return user_files.explain(error, path, line)
    keys = Keys(tree.default())
    if unknown := re.match(r"Key \"([^\"]+)\" |'([^']+)'", text):
        key = _written_key(unknown[1] or unknown[2], path, line)
        below = re.search(rf"{re.escape(key)}(\.\w+)*", source)
        return str(keys.unknown(below[0] if below and successor(below[0]) else key))
    wrong = re.match(r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type (.*)", text, re.S)
    if wrong:
        return _wrong_type(_written_key(wrong[1], path, line), wrong[2], wrong[3], keys)
    return user_files.explain(error, path, line)


def _written_key(name: str, path: Path, line: int | None) -> str:
    """Complete a key of which ``ml_collections`` reports the last part alone, from the line of the file.

    Such a line is ``c.train.steps = 3``, ``c["train"]["steps"] = 3`` or ``c.train = {"steps": 3}``. Where it does not
    show the rest, the last part is the answer.
    """
    if line is None:
        return name
    link = r"(?:\.\w+|\[['\"]\w+['\"]\])"
    chain = rf"\w({link}*(?:\.{re.escape(name)}\b|\[['\"]{re.escape(name)}['\"]\]))"
    if found := re.search(chain, linecache.getline(str(path), line)):
        return ".".join(re.findall(r"\w+", found[1]))
    for node in ast.walk(ast.parse("".join(linecache.getlines(str(path))))):
        if not (isinstance(node, ast.Assign) and node.lineno <= line <= (node.end_lineno or line)):
            continue
        if inside := _key_in_dict(name, node.value):
            _, *section = re.findall(r"[\w-]+", ast.unparse(node.targets[0]))
            return ".".join((*section, *inside))
    return name


def _key_in_dict(name: str, node: ast.expr) -> list[str]:
    """Find a key in nested dict displays: the keys that lead to it; empty if it is not there."""
    for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
        if isinstance(key, ast.Constant) and key.value == name:
            return [name]
        if isinstance(key, ast.Constant) and (below := _key_in_dict(name, value)):
            return [str(key.value), *below]
    return []


def _wrong_type(key: str, value: str, types: str, keys: Keys) -> str:
    known = (*keys.types, *keys.sections)
    if key not in known:
        # ``t = c.train`` and then ``t.steps = 'x'``: complete the key when only one can be meant.
        endings = [other for other in known if other.endswith(f".{key}")]
        key = endings[0] if len(endings) == 1 else key
    got = re.match(r"<class '(?:.*\.)?(\w+)'>", types)
    if key in keys.types:
        expected = keys.types[key].describe()
    elif key in keys.sections:
        section = keys.sections[key]
        expected = f"a section with {', '.join(names(section.type if isinstance(section, FieldType) else section))}"
    else:
        expected = "a value of the default's type"
    return f"config.{key}={value}: expected {expected}" + (f", got {got[1]}" if got else "")
