"""Arguments of the command line: a parser whose errors are one line, and types that check early.

Every verb declares its flags with these, so that the same slip gets the same answer everywhere. No JAX here: ``--help``
must not wait for it. argparse is used, and not one of the libraries that derive flags from signatures: their errors and
help are boxes of many lines, and would need a layer like this one to become ours.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from unihetero_jax.errors import UsageError, nearest

OVERRIDE = "--config."


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line, and name what was probably meant.

    Abbreviated flags are refused: a script that says ``--work`` breaks on the day that a second such flag appears. So
    is a flag given twice. The parsers of its verbs (``add_subparsers``) are of this class too.

    Args:
        prepare: Called with the parser and its arguments before they are parsed; may add arguments and verbs to the
            parser, and returns the arguments to parse.
        **options: Options of an ``ArgumentParser``.
    """

    def __init__(self, prepare: Callable[[Parser, list[str]], list[str]] | None = None, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        if options.get("description"):
            # The formatter leaves the lines of examples as they are, and those of the description too.
            options["description"] = textwrap.fill(options["description"], 100)
        super().__init__(**options)
        self.register("action", None, _Once)
        self.given: set[str] = set()
        self._prepare = prepare
        self._relaxed: list[argparse.Action] = []

    def error(self, message: str) -> NoReturn:
        """Raise a ``UsageError``, where argparse prints its usage and leaves the process."""
        raise UsageError(f"{_readable(message)} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Report unknown flags before missing ones: a slip in ``--workdir`` is both, and the first explains it."""
        arguments = list(sys.argv[1:] if args is None else args)
        if self._prepare is not None:
            arguments = self._prepare(self, arguments)
        self._refuse_unknown_flags(arguments)
        self.given = set()
        self._relaxed = required = [a for a in self._actions if a.required and a.option_strings]
        for action in required:
            action.required = False
        try:
            result, extras = super().parse_known_args(arguments, namespace)
        finally:
            self._restore()
        if extras:
            hint = nearest("--" + extras[0].lstrip("-").partition("=")[0], self._flags())
            self.error(f"unexpected argument {extras[0]!r}{hint}")
        missing = [action for action in required if action.dest not in self.given]
        if missing:
            self.error("missing " + ", ".join(f"{a.option_strings[-1]}={_placeholder(a)}" for a in missing))
        return result, []

    def format_help(self) -> str:
        """The help text."""
        # --help is answered in the middle of parsing, and must not show a required flag as optional.
        self._restore()
        return super().format_help()

    def _restore(self) -> None:
        for action in self._relaxed:
            action.required = True

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            kind = "verb" if isinstance(action, argparse._SubParsersAction) else "value"
            if action.option_strings:
                kind = f"value of {action.option_strings[-1]}"
            self.error(f"unknown {kind} {str(value)!r}: expected {one_of(choices)}{nearest(str(value), choices)}")

    def _flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def _refuse_unknown_flags(self, arguments: list[str]) -> None:
        known = {flag for action in self._actions for flag in action.option_strings}
        for argument in arguments:
            if argument == "--" or (self._subparsers and not argument.startswith("-")):
                # What follows is no flag, or belongs to another verb's parser.
                return
            flag = argument.partition("=")[0]
            if not looks_like_flag(argument) or flag in known or (flag[1] != "-" and flag[:2] in known):
                continue
            hint = nearest("--" + flag.lstrip("-"), self._flags())
            self.error(f"unknown flag {flag}: expected {one_of(self._flags())}{hint}")


class _Once(argparse.Action):
    """Stores a value, and refuses a second one instead of forgetting the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(parser, Parser)
        if self.dest in parser.given:
            raise argparse.ArgumentError(self, "given twice, expected once")
        parser.given.add(self.dest)
        setattr(namespace, self.dest, values)


def split_overrides(arguments: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Part ``--config.KEY=VALUE`` and ``--config.KEY VALUE`` from the other arguments.

    The keys are not declared to argparse: there are hundreds of them, and they belong to the config tree.

    Args:
      arguments: the arguments of a verb.

    Returns:
      Key and value of each override, the value None where there is none; and the other arguments.
    """
    overrides: list[tuple[str, str | None]] = []
    others: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":
            others += [argument, *queue]
            break
        if not argument.startswith(OVERRIDE):
            others.append(argument)
            continue
        key, equals, text = argument.removeprefix(OVERRIDE).partition("=")
        if equals:
            overrides.append((key, text))
        else:
            overrides.append((key, None if not queue or looks_like_flag(queue[0]) else queue.pop(0)))
    return overrides, others


def looks_like_flag(argument: str) -> bool:
    """Whether argparse takes it for a flag: ``-1`` is a value, and so is text with a space."""
    return len(argument) > 1 and argument[0] == "-" and " " not in argument and not re.match(r"-[\d.]", argument)


def one_of(choices: Sequence[str]) -> str:
    """A list of choices as an error message states it."""
    return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)


def _placeholder(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper())


def _readable(message: str) -> str:
    """An argparse message without its jargon."""
    if value := re.fullmatch(r"argument (\S+): expected (?:one|at least one) argument", message):
        return f"{value[1]}: expected a value, as in {value[1]}=VALUE"
    if value := re.fullmatch(r"argument (\S+): ignored explicit argument (.*)", message, re.S):
        return f"{value[1]}={value[2]}: expected no value"
    message = re.sub(r"^the following arguments are required: ", "missing ", message)
    return message.removeprefix("argument ")


# Types for `add_argument(type=…)`: argparse turns an ArgumentTypeError into an error that names the argument.


def path(text: str) -> Path:
    """A path that the system could open, whether it exists or not."""
    # Path("") is the working directory, which is hardly what an unset shell variable was meant to be.
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty value")
    if "\0" in text:
        raise argparse.ArgumentTypeError("expected a path, got a null byte")
    found = Path(text)
    try:
        found.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    return found


def existing_path(text: str) -> Path:
    """An existing file or directory."""
    found = path(text)
    if not found.exists():
        raise argparse.ArgumentTypeError(f"{found}: no such file or directory{_near(found)}")
    return found


def existing_directory(text: str) -> Path:
    """An existing directory."""
    found = path(text)
    if found.exists() and not found.is_dir():
        raise argparse.ArgumentTypeError(f"{found} is a file: expected a directory")
    if not found.exists():
        raise argparse.ArgumentTypeError(f"{found}: no such directory{_near(found)}")
    return found


def existing_file(text: str) -> Path:
    """An existing file."""
    found = path(text)
    if found.is_dir():
        raise argparse.ArgumentTypeError(f"{found} is a directory: expected a file")
    if not found.exists():
        raise argparse.ArgumentTypeError(f"{found}: no such file{_near(found)}")
    return found


def output_directory(text: str) -> Path:
    """A directory that may be created: no file may stand in its way."""
    found = path(text)
    for folder in (found, *found.parents):
        if folder.is_dir():
            break
        if folder.exists():
            raise argparse.ArgumentTypeError(f"{folder} is a file: expected a directory, or a name for a new one")
    return found


def output_file(text: str) -> Path:
    """A file to write at the end; a missing directory is reported now, and not after an hour of work."""
    found = path(text)
    if found.is_dir():
        raise argparse.ArgumentTypeError(f"{found} is a directory: expected a file name")
    if not found.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{found}: there is no directory {found.parent}")
    return found


def step(text: str) -> int:
    """The number of a training step."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer, 0 or more")
    return int(text)


def count(text: str) -> int:
    """A number of things, at least one."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a count, such as 20")
    return int(text)


def words(text: str) -> str:
    """Text that is not blank."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected some text, got none")
    return text


def add_workdir(parser: argparse.ArgumentParser) -> None:
    """Declare the ``--workdir`` of a verb that reads a run."""
    parser.add_argument(
        "--workdir",
        type=existing_directory,
        required=True,
        metavar="DIR",
        help="the directory of a training run",
    )


def _near(missing: Path) -> str:
    try:
        return nearest(missing.name, os.listdir(missing.parent))
    except OSError:
        # A hint is no reason to fail: the directory may be missing, or not ours to list.
        return ""
