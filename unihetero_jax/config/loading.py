"""From an experiment's file and the overrides typed beside it to a validated ``Config``.

``load("configs/smart_watch.py", [("train.steps", "10")])`` works the same from the command line and from a notebook.
Whatever is wrong in the file or in an override becomes one ``UsageError`` that says where it is and what would be
right: the file belongs to the user, so a traceback through our code and ``ml_collections`` would only hide the line.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.machinery
import importlib.util
import itertools
import linecache
import os
import re
import sys
import sysconfig
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections.config_dict import config_dict

from unihetero_jax.config import Config, check_value, describe, field_types, resolve, tables
from unihetero_jax.errors import UsageError, nearest

# Where code is that is not the user's.
_INSTALLED = (os.path.dirname(__file__), *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")))
# Stands for any name in a table, where keys are listed.
_ANY = "NAME"
_BOOLS = {"true": True, "True": True, "1": True, "yes": True, "false": False, "False": False, "0": False, "no": False}


@dataclass(frozen=True)
class Tree:
    """Configs of one root: which keys there are, and what makes a validated config of nested values.

    ``check``: refuses a file that is meant for another root, before its keys are found to be unknown.
    """

    root: type
    resolve: Callable[[Mapping[str, Any]], Any]
    check: Callable[[Mapping[str, Any]], None] = lambda values: None

    @functools.cached_property
    def tables(self) -> dict[str, type]:
        """Dotted key of each table, and what its sections are."""
        return dict(tables(self.root))

    @functools.cached_property
    def kinds(self) -> dict[str, Any]:
        """Dotted key and type of each value; in a table, for any name."""
        inside = (field_types(section, f"{key}.{_ANY}.") for key, section in self.tables.items())
        return dict(itertools.chain(field_types(self.root), *inside))

    @functools.cached_property
    def sections(self) -> list[str]:
        """Dotted keys of the sections."""
        keys = (key.split(".") for key in self.kinds)
        return list(dict.fromkeys(".".join(key[:count]) for key in keys for count in range(1, len(key))))

    def general(self, key: str) -> str:
        """A dotted key with any name in place of a table's."""
        for table in self.tables:
            if key.startswith(f"{table}."):
                _, *rest = key.removeprefix(f"{table}.").split(".")
                return ".".join([table, _ANY, *rest])
        return key


UNIFIED = Tree(Config, resolve)

# A module of an experiment must not shadow, or be shadowed by, another one of the same name in the same process.
_MODULE_NUMBER = itertools.count()


def load(path: str | os.PathLike[str], overrides: Iterable[tuple[str, str]] = (), tree: Tree = UNIFIED) -> Any:
    """The experiment in a config file, with overrides on top.

    Args:
      path: a Python file whose ``get_config()`` returns ``unihetero_jax.config.defaults()``, changed, or a (possibly
        partial) nested dict.
      overrides: dotted keys without the leading ``config.``, and values as they are typed: ``("train.steps", "10")``.
      tree: what is configured.

    Raises:
      UsageError: naming the file and line, or the override, what was expected and the nearest valid name.
    """
    changes: dict[str, Any] = {}
    for key, text in overrides:
        value = parse(key, text, tree)
        if key in changes:
            raise UsageError(f"config.{key} is given twice: expected one value for a key")
        changes[key] = value
    values = _read(Path(path), tree)
    try:
        tree.check(values)
        _refuse_unknown_keys(values, tree)
        return tree.resolve(_with_changes(values, changes))
    except UsageError as error:
        # Values that clash only once the overrides are in are not the file's fault, so it is not named for them.
        where = f"{path}: " if str(error) == _complaint(values, tree) else ""
        raise UsageError(f"{where}{error}") from None


def parse(key: str, text: str, tree: Tree = UNIFIED) -> Any:
    """The value that ``text`` stands for, by the type of a dotted config key.

    Raises:
      UsageError: when the key is unknown or a section, or the text is no value of its type.
    """
    kind = value_type(key, tree)
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
        try:
            return tuple(int(part) for part in inside.split(",") if part.strip())
        except ValueError:
            raise UsageError(f"config.{key}={text}: expected {describe(kind)}") from None
    return check_value(f"config.{key}", kind, text)


def value_type(key: str, tree: Tree = UNIFIED) -> Any:
    """The type of a dotted config key.

    Raises:
      UsageError: when there is no such key, with the nearest valid one, or when it is a section, with its keys.
    """
    general = tree.general(key)
    if general in tree.kinds:
        return tree.kinds[general]
    if general in tree.sections:
        inside = [f"config.{name}" for name in tree.kinds if name.startswith(f"{general}.")]
        raise UsageError(f"config.{key} is a section, not a value: expected one of its keys, {', '.join(inside)}")
    raise _unknown_key(key, tree)


def _unknown_key(key: str, tree: Tree) -> UsageError:
    close = _closest_key(tree.general(key), tree)
    for table in tree.tables:
        if close and key.startswith(f"{table}."):
            name = key.removeprefix(f"{table}.").split(".")[0]
            close = close.replace(f"{table}.{_ANY}", f"{table}.{name}")
    hint = f"; did you mean 'config.{close}'?" if close else f": expected a key in {', '.join(_top_level(tree))}"
    return UsageError(f"unknown config key config.{key}{hint}")


def _top_level(tree: Tree) -> list[str]:
    return [f"config.{section}" for section in tree.sections if "." not in section]


def _closest_key(key: str, tree: Tree) -> str | None:
    """The valid key or section that was most likely meant.

    Who writes ``config.mode`` forgot the section of ``config.data.mode``, although ``config.model`` is close. Otherwise
    slips within the right section count most, then slips in a name wherever it lives, then slips anywhere.
    """
    valid = [*tree.kinds, *tree.sections]
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


def _refuse_unknown_keys(values: Mapping[str, Any], tree: Tree, prefix: str = "") -> None:
    """Like ``resolve``, but with a hint that looks beyond the section in which the key was written."""
    valid = {*tree.kinds, *tree.sections}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if tree.general(key) not in valid:
            raise _unknown_key(key, tree)
        if isinstance(value, Mapping) and tree.general(key) in tree.sections:
            _refuse_unknown_keys(value, tree, f"{key}.")


def _complaint(values: Mapping[str, Any], tree: Tree) -> str:
    """What is wrong with a file's values by themselves, or an empty string."""
    try:
        tree.check(values)
        _refuse_unknown_keys(values, tree)
        tree.resolve(values)
    except UsageError as error:
        return str(error)
    return ""


def _with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with dotted ``changes`` on top; ``values`` stays as it is."""
    result = _plain(values)
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = result
        for part in sections:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                # The file put a value where a section belongs; ``resolve`` refuses that, so nothing may hide it here.
                return result
        section[name] = value
    return result


def _plain(values: Any) -> Any:
    """Nested plain dicts of anything that is a mapping or a ``ConfigDict``, which is none."""
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    if isinstance(values, Mapping):
        return {name: _plain(value) for name, value in values.items()}
    return values


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the file each time: no ``__pycache__`` beside the user's configs, and never a stale one read."""

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def attribute(path: Path, name: str, tree: Tree = UNIFIED) -> Any:
    """What a Python file of the user's calls ``name``.

    Raises:
      UsageError: naming the file and line, what is wrong there and what was expected.
    """
    with _executed(path, tree, name) as module:
        if not hasattr(module, name):
            names = [entry for entry in vars(module) if not entry.startswith("_")]
            raise UsageError(f"{path}: expected {name}{nearest(name, names)}")
        return getattr(module, name)


def _read(path: Path, tree: Tree) -> dict[str, Any]:
    """What ``get_config()`` of a config file returns, as nested plain dicts."""
    with _executed(path, tree, "get_config()") as module:
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            names = [entry for entry in vars(module) if not entry.startswith("_")]
            raise UsageError(f"{path}: expected a function get_config(){nearest('get_config', names)}")
        values = in_file(path, lambda: _plain(get_config()), tree)
    if not isinstance(values, dict):
        raise UsageError(
            f"{path}: get_config() returned {type(values).__name__}: expected unihetero_jax.config.defaults(), "
            "changed, or a dict"
        )
    return values


@contextlib.contextmanager
def _executed(path: Path, tree: Tree, content: str) -> Iterator[types.ModuleType]:
    """The module of a Python file, which is to have ``content``."""
    name = f"unihetero_jax_config_file_{next(_MODULE_NUMBER)}"
    loader = _Loader(name, str(path))
    try:
        loader.get_code(name)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file, expected one with {content}{_near_file(path)}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory: expected a Python file with {content}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        # A binary file is a ValueError in some Python versions, without a line.
        line, reason = (error.lineno, error.msg) if isinstance(error, SyntaxError) else (None, str(error))
        raise UsageError(f"{_place(path, line)}: expected a Python file with {content}: {reason}") from None

    module = importlib.util.module_from_spec(_spec(name, loader))
    # A dataclass in the file looks its own module up by name.
    sys.modules[name] = module
    try:
        in_file(path, lambda: loader.exec_module(module), tree)
        yield module
    finally:
        del sys.modules[name]


def _spec(name: str, loader: _Loader) -> importlib.machinery.ModuleSpec:
    spec = importlib.util.spec_from_file_location(name, loader.path, loader=loader)
    assert spec is not None, "a spec with a loader of its own always exists"
    return spec


def _near_file(path: Path) -> str:
    try:
        return nearest(path.name, os.listdir(path.parent))
    except FileNotFoundError:
        return f": there is no directory {str(path.parent)!r}"
    except OSError:
        # A hint is no reason to fail: the directory may not be ours to list.
        return ""


_Result = typing.TypeVar("_Result")


def in_file(path: Path, call: Callable[[], _Result], tree: Tree = UNIFIED) -> _Result:
    """Runs code of a user's file, and turns what it raises into one line that names the file and the line.

    Raises:
      UsageError: whatever the code raised.
    """
    try:
        return call()
    except (Exception, SystemExit) as error:
        # SystemExit too: a config file that leaves the process with status 0 would look like a finished run.
        frames = [(frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(error.__traceback__)]
        line = next((number for file, number in reversed(frames) if file == str(path)), None)
        reason = " ".join(_explain(error, path, line, tree).split())
        raise UsageError(f"{_place(path, line)}: {reason}{_beyond(frames, path)}") from None


def _beyond(frames: Sequence[tuple[str, int]], path: Path) -> str:
    """Where a module of the user's that the file calls went wrong, of the (file, line) of each call."""
    theirs = [(file, line) for file, line in frames if not file.startswith((*_INSTALLED, "<"))]
    return f" (at {theirs[-1][0]}:{theirs[-1][1]})" if theirs and theirs[-1][0] != str(path) else ""


def _place(path: Path, line: int | None) -> str:
    return f"{path}:{line}" if line else str(path)


def _explain(error: BaseException, path: Path, line: int | None, tree: Tree) -> str:
    """An error inside a config file in the words of a config: which key, what was expected."""
    if isinstance(error, UsageError):
        return str(error)
    text = _message(error)
    if _raised_by_config_dict(error):
        linecache.checkcache(str(path))
        source = linecache.getline(str(path), line) if line else ""
        if unknown := re.match(r"Key \"([^\"]+)\" |'([^']+)'", text):
            return str(_unknown_key(_written_key(unknown[1] or unknown[2], source), tree))
        wrong = re.match(r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type (.*)", text, re.S)
        if wrong:
            return _wrong_type(_written_key(wrong[1], source), wrong[2], wrong[3], tree)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _message(error: BaseException) -> str:
    """The message of an error; ``str`` of a KeyError is a repr, and ``ml_collections`` wraps one error in another."""
    first = error.args[0] if error.args else ""
    return _message(first) if isinstance(first, BaseException) else str(first if len(error.args) == 1 else error)


def _raised_by_config_dict(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code.co_filename == config_dict.__file__


def _written_key(name: str, source: str) -> str:
    """The dotted key that ends in ``name`` on a line such as ``c.train.steps = 3`` or ``c["train"]["steps"] = 3``.

    ``ml_collections`` reports the last part alone. Where the line does not show the rest, that part is the answer.
    """
    link = r"(?:\.\w+|\[['\"]\w+['\"]\])"
    chain = re.search(rf"\w({link}*(?:\.{re.escape(name)}\b|\[['\"]{re.escape(name)}['\"]\]))", source)
    return ".".join(re.findall(r"\w+", chain[1])) if chain else name


def _wrong_type(key: str, value: str, types_in_words: str, tree: Tree) -> str:
    if key not in (*tree.kinds, *tree.sections):
        # ``t = c.train`` and then ``t.steps = 'x'``: complete the key when only one can be meant.
        endings = [known for known in (*tree.kinds, *tree.sections) if known.endswith(f".{key}")]
        key = endings[0] if len(endings) == 1 else key
    got = re.match(r"<class '(?:.*\.)?(\w+)'>", types_in_words)
    if key in tree.kinds:
        expected = describe(tree.kinds[key])
    elif key in tree.sections:
        expected = f"a section with {', '.join(_names_in(key, tree))}"
    else:
        expected = "a value of the default's type"
    return f"config.{key}={value}: expected {expected}" + (f", got {got[1]}" if got else "")


def _names_in(section: str, tree: Tree) -> list[str]:
    inside = [key.removeprefix(f"{section}.") for key in tree.kinds if key.startswith(f"{section}.")]
    return list(dict.fromkeys(key.split(".")[0] for key in inside))
