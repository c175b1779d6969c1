"""Python files of the user's: experiments, studies, and files that register components.

Whatever is wrong in such a file becomes one ``UsageError`` that names its file and line: a traceback through our code
and ``ml_collections`` would only hide the line.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import importlib
import importlib.machinery
import importlib.util
import itertools
import os
import sys
import sysconfig
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unihetero_jax.errors import UsageError, nearest

# Where code is that is not the user's.
_INSTALLED = (
    os.path.dirname(os.path.dirname(__file__)),
    *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
)
# A module of an experiment must not shadow, or be shadowed by, another one of the same name in the same process.
_MODULE_NUMBER = itertools.count()
# The entries of ``config.imports`` so far, files by their absolute paths.
_imported: dict[str, None] = {}

# The folder of the file that is being executed, where its relative paths are searched.
_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar("folder", default=None)

_Result = typing.TypeVar("_Result")
Explain = Callable[[BaseException, Path, int | None], str]


def explain(error: BaseException, path: Path, line: int | None) -> str:
    """Format an error in a user's file as one line."""
    del path, line
    if isinstance(error, UsageError):
        return str(error)
    text = message(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def message(error: BaseException) -> str:
    """Return the message of an error: ``str`` of a KeyError is a repr, and ``ml_collections`` wraps errors."""
    first = error.args[0] if error.args else ""
    return message(first) if isinstance(first, BaseException) else str(first if len(error.args) == 1 else error)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compile the file each time: no ``__pycache__`` beside the user's configs, and never a stale one."""

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def attribute(path: Path, name: str) -> Any:
    """Return the object that a user's Python file calls ``name``.

    Raises:
      UsageError: naming the file and line, what is wrong there and what was expected.
    """
    with executed(path, name) as module:
        if not hasattr(module, name):
            raise UsageError(f"{path}: expected {name}{nearest(name, public_names(module))}")
        return getattr(module, name)


def public_names(module: types.ModuleType) -> list[str]:
    """Return the names that a module defines for others."""
    return [entry for entry in vars(module) if not entry.startswith("_")]


@contextlib.contextmanager
def executed(path: Path, content: str, explain: Explain = explain) -> Iterator[types.ModuleType]:
    """Yield the module of a Python file, which should have ``content``; it is forgotten afterwards."""
    name = f"unihetero_jax_config_file_{next(_MODULE_NUMBER)}"
    module, loader = _compiled(path, name, content)
    # A dataclass in the file finds its own module by name.
    sys.modules[name] = module
    try:
        in_file(path, lambda: loader.exec_module(module), explain)
        yield module
    finally:
        del sys.modules[name]


def _compiled(path: Path, name: str, content: str) -> tuple[types.ModuleType, _Loader]:
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
    spec = importlib.util.spec_from_file_location(name, loader.path, loader=loader)
    assert spec is not None, "a spec with a loader of its own always exists"
    return importlib.util.module_from_spec(spec), loader


def _near_file(path: Path) -> str:
    try:
        return nearest(path.name, os.listdir(path.parent))
    except FileNotFoundError:
        return f": there is no directory {str(path.parent)!r}"
    except OSError:
        # A hint is no reason to fail: the directory may not be ours to list.
        return ""


def in_file(path: Path, call: Callable[[], _Result], explain: Explain = explain) -> _Result:
    """Run code of a user's file, and turn what it raises into one line that names the file and the line.

    Raises:
      UsageError: whatever the code raised.
    """
    folder = _folder.set(path.parent)
    try:
        return call()
    except (Exception, SystemExit) as error:
        # SystemExit too: a config file that ends the process with status 0 would pass for a finished run.
        frames = [(frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(error.__traceback__)]
        line = next((number for file, number in reversed(frames) if file == str(path)), None)
        reason = " ".join(explain(error, path, line).split())
        raise UsageError(f"{_place(path, line)}: {reason}{_beyond(frames, path)}") from None
    finally:
        _folder.reset(folder)


def _beyond(frames: Sequence[tuple[str, int]], path: Path) -> str:
    """Locate the error in a user's module that the file calls, from the (file, line) of each call."""
    theirs = [(file, line) for file, line in frames if not file.startswith((*_INSTALLED, "<"))]
    return f" (at {theirs[-1][0]}:{theirs[-1][1]})" if theirs and theirs[-1][0] != str(path) else ""


def _place(path: Path, line: int | None) -> str:
    return f"{path}:{line}" if line else str(path)


def is_path(name: str) -> bool:
    """Return whether an entry of ``config.imports`` is a file and not the name of a module."""
    return name.endswith(".py") or "/" in name


def import_components(names: Iterable[str], beside: Path | None = None, key: str = "config.imports") -> tuple[str, ...]:
    """Import the modules and files of ``config.imports``, which register components.

    Args:
      names: modules such as ``my_lab.parts``, or paths of Python files.
      beside: the folder of the experiment's file: a relative path is searched in the current folder, then there;
        by default that of the file that is being executed.
      key: of the config, that names them.

    Returns:
      The names, with absolute paths.

    Raises:
      UsageError: naming the entry, and the file and line that went wrong.
    """
    found = tuple(str(locate(name, beside)) if is_path(name) else name for name in names)
    for name in found:
        if is_path(name):
            _import_file(Path(name))
        else:
            _import_module(name, key)
        _imported[name] = None
    return found


def _import_module(name: str, key: str) -> None:
    if os.getcwd() not in sys.path:
        # Python adds the current folder for ``python -m``, and not for a command.
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        frames = [(frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            frames.append((error.filename, error.lineno or 0))
        theirs = [f" (at {file}:{line})" for file, line in frames if not file.startswith((*_INSTALLED, "<"))]
        reason = " ".join(explain(error, Path(name), None).split())
        raise UsageError(f"{key}: {name} cannot be imported: {reason}{theirs[-1] if theirs else ''}") from None


def own_traceback(error: BaseException) -> str:
    """Format the traceback of an error in a user's component, shortened to the files of ``config.imports``.

    Returns:
      The text to print; empty if the error passed through none of these files.
    """
    places = tuple(_place_of(name) for name in _imported)
    summary = traceback.TracebackException.from_exception(error)
    theirs = [frame for frame in summary.stack if frame.filename.startswith(places)]
    if not theirs:
        return ""
    lines = [*traceback.StackSummary.from_list(theirs).format(), *summary.format_exception_only()]
    return "Traceback (most recent call last; only files of config.imports):\n" + "".join(lines)


def _place_of(name: str) -> str:
    """Return the file of an entry of ``config.imports``; of a module in a package, the package's folder."""
    if is_path(name):
        return name
    top = sys.modules[name.partition(".")[0]]
    folders = getattr(top, "__path__", ())
    return os.path.join(folders[0], "") if folders else str(top.__file__)


def imported() -> tuple[str, ...]:
    """Return the modules and files imported so far; another process imports them to unpickle what they define."""
    return tuple(_imported)


def locate(name: str, beside: Path | None = None) -> Path:
    """Return the absolute path of a file that ``config.imports`` names."""
    path, beside = Path(name).expanduser(), beside or _folder.get()
    if not path.is_absolute() and not path.exists() and beside is not None and (beside / path).exists():
        path = beside / path
    return path.absolute()


def _import_file(path: Path) -> None:
    # By its path, so that a file is imported once, and what it defines can be found again by name (pickle).
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    try:
        module, loader = _compiled(path, name, "registered components")
        sys.modules[name] = module
        in_file(path, lambda: loader.exec_module(module))
    except UsageError as error:
        sys.modules.pop(name, None)
        raise UsageError(f"config.imports: {error}") from None


def digests(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the source of each entry of ``config.imports``; of a package, of all its Python files.

    Raises:
      UsageError: a file that cannot be found.
    """
    return {name: _digest(name) for name in names}


def _digest(name: str) -> str:
    if is_path(name):
        files = [locate(name)]
    else:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise UsageError(f"config.imports: {name}: expected a module with a source file")
        folders = spec.submodule_search_locations
        files = sorted(Path(folders[0]).rglob("*.py")) if folders else [Path(spec.origin)]
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()
