"""The settings file of a job, read by every launcher of this directory."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import subprocess
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from unihetero_jax.errors import UsageError, nearest

Section = TypeVar("Section")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A name becomes part of host names: a label of RFC 1123, short enough for the suffixes that Kubernetes adds.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Job:
    """Section ``[job]``: what to run.

    Attributes:
      name: name of the job on the cluster.
      arguments: arguments of ``unihetero``.
      restarts: how often to start the job again.
      grace: seconds from SIGTERM to the end, in which the run saves.
      at_once: number of a study's tasks at a time; 0: as many as the cluster allows.
      environment: environment variables of every process.
    """

    name: str
    arguments: list[str]
    restarts: int = 20
    grace: int = 300
    at_once: int = 0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """What a launcher submits.

    Attributes:
      text: the script or manifest, for the standard input of ``command``.
      command: the command that takes it.
      needs: the program that has to be on PATH.
    """

    text: str
    command: Sequence[str]
    needs: str


def read(path: Path, name: str, kind: type[Section]) -> tuple[Job, Section]:
    """Read the job and one launcher's section of a settings file.

    Args:
      path: the TOML file.
      name: name of the launcher's section.
      kind: dataclass of that section.

    Raises:
      UsageError: names the file, the key and what was expected.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--settings={path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    known = ("job", "slurm", "gke", "tpu_vm")
    for key in values:
        if key not in known:
            raise UsageError(f"{path}: unknown section [{key}]{nearest(key, known)}")
    job, section = (_section(path, section, values.get(section), of) for section, of in (("job", Job), (name, kind)))
    if not _NAME.fullmatch(job.name):
        raise UsageError(
            f"{path}: job.name={job.name!r}: expected up to 40 lower-case letters, digits and dashes, a letter first"
        )
    if not job.arguments:
        raise UsageError(f"{path}: job.arguments is empty: expected those of unihetero, such as ['train', …]")
    for variable in job.environment:
        if not _VARIABLE.fullmatch(variable):
            raise UsageError(f"{path}: job.environment.{variable}: expected letters, digits and underscores")
    return job, section


def _section(path: Path, name: str, values: object, kind: type[Any]) -> Any:
    if not isinstance(values, Mapping):
        raise UsageError(f"{path}: no section [{name}]; see launch/settings.example.toml")
    types_of = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in types_of:
            raise UsageError(f"{path}: unknown key {name}.{key}{nearest(key, types_of)}")
        _check(f"{path}: {name}.{key}", value, types_of[key])
    for known in dataclasses.fields(kind):
        optional = known.default is not dataclasses.MISSING or known.default_factory is not dataclasses.MISSING
        if known.name not in values and not optional:
            raise UsageError(f"{path}: {name}.{known.name} is missing; see launch/settings.example.toml")
    return kind(**values)


_WORDS: dict[Any, str] = {
    int: "an integer, 0 or more",
    str: "text of one line",
    list[str]: "a list of texts of one line",
    dict[str, str]: "a table of texts of one line",
}


def _check(place: str, value: object, kind: type | types.GenericAlias) -> None:
    # A line break would end a comment line of a batch header and start a command.
    if kind is int:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    elif kind is str:
        right = _one_line(value)
    elif kind == list[str]:
        right = isinstance(value, list) and all(map(_one_line, value))
    else:
        right = isinstance(value, dict) and all(map(_one_line, value.values()))
    if not right:
        raise UsageError(f"{place}={value!r}: expected {_WORDS[kind]}")


def _one_line(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def launch(program: str, summary: str, arguments: Sequence[str], render: Callable[[Path], Order]) -> int:
    """Render a job and submit it, or print it.

    Args:
      program: name of the launcher.
      summary: what it does, in one line.
      arguments: command-line arguments.
      render: returns the script or manifest of a settings file, and the command that takes it.

    Returns:
      The exit code: that of the command, or 2 for wrong settings.
    """
    parser = _Parser(prog=program, description=summary, allow_abbrev=False)
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE.toml", help="the job's settings")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the script or manifest, and submit nothing",
    )
    options = parser.parse_args(arguments)
    try:
        order = render(options.settings)
        if options.dry_run:
            print(order.text, end="")
            return 0
        if shutil.which(order.needs) is None:
            raise UsageError(f"{order.needs} is not on PATH: run this on a machine that has it, or use --dry-run")
    except UsageError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    return subprocess.run(order.command, input=order.text, text=True, check=False).returncode
