"""``unihetero VERB``: a thin table of verbs, each a module's main.

What is typed wrong gets one line on stderr and exit code 2; so does every ``UsageError`` raised further down. Any other
exception is a mistake of ours and keeps its traceback. A verb's modules are imported when it runs, so that ``--help``
answers at once and a typing slip costs no start of JAX.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from unihetero_jax import __version__
from unihetero_jax.errors import UsageError, nearest

_OVERRIDE = "--config."
_COMPUTING = ("train", "eval", "generate")

_TRAIN_HELP = """\
overrides:
  --config.SECTION.KEY=VALUE changes one value of the config file, and may be given once for each key. The value must
  be of the key's type: an integer (10), a number (0.3, 1e-4), true or false, a word from a list, or text. A wrong key
  or value is refused before anything starts, with the nearest valid name.

  --config.data.root is where the dataset is. It is empty by default, which means WORKDIR/data.

examples:
  unihetero train --config=configs/quickstart.py --workdir=runs/watch
  unihetero train --config=configs/quickstart.py --workdir=runs/short --config.train.steps=20
  unihetero train --config=configs/quickstart.py --workdir=runs/vqa \\
      --config.data.mode=understanding --config.objectives.semantic.weight=0 --config.logging.tensorboard=false

The same command again continues from the newest checkpoint in WORKDIR.

exit codes:
  0   the run is complete
  2   the command line, the config or a file is wrong; one line on stderr says what
  75  the run was asked to stop (SIGTERM) and has saved a checkpoint: run the same command again to continue
"""

_EVAL_HELP = """\
examples:
  unihetero eval --workdir=runs/watch
  unihetero eval --workdir=runs/watch --step=200 --out=step200.json
  unihetero eval --workdir=runs/watch --follow

exit codes:
  0   the evaluation is complete
  2   the command line is wrong, or there is no such checkpoint; one line on stderr says what
"""

_GENERATE_HELP = """\
examples:
  unihetero generate --workdir=runs/watch --image=watch.png --prompt="What time does the watch show?"
  unihetero generate --workdir=runs/watch --prompt="a watch that shows 10:08:42" --out=watch.png
  unihetero generate --workdir=runs/watch --prompt="a watch" --out=watch.png --temperature=0.7 --guidance=3 --seed=1

exit codes:
  0   the result is written
  2   the command line is wrong, or there is no such checkpoint; one line on stderr says what
"""

_DATA_HELP = """\
examples:
  unihetero data build smart_watch --out=data/watch
  unihetero data inspect data/watch --grid=grid.png

exit codes:
  0   done
  2   the command line or a file is wrong; one line on stderr says what
"""

_WEIGHTS_HELP = """\
examples:
  unihetero weights import Qwen3-0.6B --out=weights/qwen3
  unihetero weights export --workdir=runs/watch --out=exported
  unihetero weights inspect Qwen3-0.6B

exit codes:
  0   done
  2   the command line or a file is wrong; one line on stderr says what
"""


class _Once(argparse.Action):
    """Stores a value, and refuses a second one instead of forgetting the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not self.default:
            raise argparse.ArgumentError(self, "given twice, expected once")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose complaints are one line, and name what was probably meant.

    Abbreviated flags are refused: a script that says ``--work`` breaks on the day that a second such flag appears.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)
        self._relaxed: list[argparse.Action] = []

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{_readable(message)} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Complains about what is unknown before what is missing: a slip in ``--workdir`` is both, and one explains."""
        arguments = list(sys.argv[1:] if args is None else args)
        self._refuse_unknown_flags(arguments)
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
        missing = [action for action in required if getattr(result, action.dest) is action.default]
        if missing:
            self.error("missing " + ", ".join(f"{a.option_strings[-1]}={_placeholder(a)}" for a in missing))
        return result, []

    def format_help(self) -> str:
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
            self.error(f"unknown {kind} {str(value)!r}: expected {_one_of(choices)}{nearest(str(value), choices)}")

    def _flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def _refuse_unknown_flags(self, arguments: list[str]) -> None:
        known = {flag for action in self._actions for flag in action.option_strings}
        for argument in arguments:
            if argument == "--" or (self._subparsers and not argument.startswith("-")):
                # What follows is no flag, or belongs to another verb's parser.
                return
            flag = argument.partition("=")[0]
            if not _looks_like_flag(argument) or flag in known or (flag[1] != "-" and flag[:2] in known):
                continue
            hint = nearest("--" + flag.lstrip("-"), self._flags())
            self.error(f"unknown flag {flag}: expected {_one_of(self._flags())}{hint}")


def _looks_like_flag(argument: str) -> bool:
    """By the rules of argparse: ``-1`` is a value, and so is what contains a space."""
    return len(argument) > 1 and argument[0] == "-" and " " not in argument and not re.match(r"-[\d.]", argument)


def _placeholder(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper())


def _one_of(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)


def _readable(message: str) -> str:
    """An argparse message without its jargon."""
    if value := re.fullmatch(r"argument (\S+): expected (?:one|at least one) argument", message):
        return f"{value[1]}: expected a value, as in {value[1]}=VALUE"
    if value := re.fullmatch(r"argument (\S+): ignored explicit argument (.*)", message, re.S):
        return f"{value[1]}={value[2]}: expected no value"
    message = re.sub(r"^the following arguments are required: ", "missing ", message)
    return message.removeprefix("argument ")


def _output_directory(text: str) -> Path:
    """A directory that may be created: no file may stand in its way."""
    path = _path(text)
    for folder in (path, *path.parents):
        if folder.is_dir():
            break
        if folder.exists():
            raise argparse.ArgumentTypeError(f"{folder} is a file: expected a directory, or a name for a new one")
    return path


def _existing_directory(text: str) -> Path:
    path = _path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a file: expected the directory of a training run")
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path}: no such directory{_near(path)}")
    return path


def _existing_file(text: str) -> Path:
    path = _path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a directory: expected a file")
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path}: no such file{_near(path)}")
    return path


def _output_file(text: str) -> Path:
    """A file to write at the end: that its directory is there is worth knowing before an hour of work, not after."""
    path = _path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a directory: expected a file name")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: there is no directory {path.parent}")
    return path


def _path(text: str) -> Path:
    # Path("") is the working directory, which is hardly what an unset shell variable was meant to be.
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty value")
    if "\0" in text:
        raise argparse.ArgumentTypeError("expected a path, got a null byte")
    path = Path(text)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    return path


def _near(path: Path) -> str:
    try:
        return nearest(path.name, os.listdir(path.parent))
    except OSError:
        # A hint is no reason to fail: the directory may be missing, or not ours to list.
        return ""


def _step(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no step: expected an integer, 0 or more")
    return int(text)


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected some text, got none")
    return text


def _take_overrides(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Splits ``--config.KEY=VALUE`` and ``--config.KEY VALUE`` from the other arguments.

    The keys are not declared to argparse: there are a hundred of them, and they belong to the config tree.
    """
    overrides: list[tuple[str, str]] = []
    others: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":
            others += [argument, *queue]
            break
        if not argument.startswith(_OVERRIDE):
            others.append(argument)
            continue
        key, equals, text = argument.removeprefix(_OVERRIDE).partition("=")
        if not equals:
            if not queue or _looks_like_flag(queue[0]):
                raise _missing_value(key)
            text = queue.pop(0)
        overrides.append((key, text))
    return overrides, others


def _missing_value(key: str) -> UsageError:
    """Of an override without a value; that its key is wrong is the more useful complaint."""
    from unihetero_jax import config, config_file

    expected = config.describe(config_file.value_type(key))
    return UsageError(f"{_OVERRIDE}{key} has no value: expected {expected}, as in {_OVERRIDE}{key}=VALUE")


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    from unihetero_jax.data import cli as data_cli

    data_cli.add_verbs(parser)


def _weights_arguments(parser: argparse.ArgumentParser) -> None:
    from unihetero_jax.weights import cli as weights_cli

    weights_cli.add_verbs(parser)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=_path,
        action=_Once,
        required=True,
        metavar="FILE.py",
        help="the experiment: a Python file with get_config()",
    )
    parser.add_argument(
        "--workdir",
        type=_output_directory,
        action=_Once,
        required=True,
        metavar="DIR",
        help="where checkpoints, metrics and the dataset (unless --config.data.root is set) go; created when missing",
    )
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from unihetero_jax import config_file

    # Before the trainer is imported: a slip in the config should not wait for JAX.
    config = config_file.load(options.config, options.overrides)
    from unihetero_jax.evaluate import main as evaluate_main
    from unihetero_jax.train import main as train_main

    return train_main.run(config, options.workdir, evaluate_main.finish)


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    _add_workdir(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--step", type=_step, action=_Once, metavar="N", help="the checkpoint to evaluate (default: the newest)"
    )
    which.add_argument(
        "--follow",
        action="store_true",
        help="evaluate each checkpoint as it is written, until the run is complete (default: one checkpoint)",
    )
    parser.add_argument(
        "--out", type=_output_file, action=_Once, metavar="FILE.json", help="also write the scores here (default: no)"
    )
    parser.set_defaults(run=_eval)


def _eval(options: argparse.Namespace) -> int:
    from unihetero_jax.evaluate import main as evaluate_main

    return evaluate_main.run(options.workdir, options.step, options.follow, options.out)


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_workdir(parser)
    parser.add_argument(
        "--prompt", type=_text, action=_Once, required=True, metavar="TEXT", help="a question, or what to draw"
    )
    parser.add_argument(
        "--image", type=_existing_file, action=_Once, metavar="FILE", help="a picture to ask about (default: none)"
    )
    parser.add_argument("--out", type=_output_file, action=_Once, metavar="FILE", help="write the result to this file")
    parser.add_argument(
        "--step", type=_step, action=_Once, metavar="N", help="the checkpoint to use (default: the newest)"
    )
    for name, (kind, metavar, text) in _SAMPLING.items():
        parser.add_argument(f"--{name}", type=kind, action=_Once, metavar=metavar, help=text)
    parser.set_defaults(run=_generate)


_SAMPLING: dict[str, tuple[type, str, str]] = {
    "temperature": (float, "T", "how freely words are chosen; 0: always the likeliest (default: 0)"),
    "top_k": (int, "K", "choose among so many of the likeliest words; 0: all (default: 0)"),
    "top_p": (float, "P", "choose among the fewest words whose probabilities add up to this (default: 1)"),
    "guidance": (float, "G", "how far a picture is led towards the prompt; 1: no further (default: as configured)"),
    "seed": (int, "N", "of everything random (default: 0)"),
    "max_tokens": (int, "N", "most tokens of text (default: 128)"),
    "max_images": (int, "N", "most pictures (default: 1)"),
}


def _generate(options: argparse.Namespace) -> int:
    from unihetero_jax.generate import main as generate_main

    given = {name: getattr(options, name) for name in _SAMPLING if getattr(options, name) is not None}
    return generate_main.run(options.workdir, options.prompt, options.image, options.out, options.step, given)


def _add_workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        type=_existing_directory,
        action=_Once,
        required=True,
        metavar="DIR",
        help="the directory of a training run",
    )


@dataclass(frozen=True)
class _Verb:
    """``arguments`` declares a verb's flags and the function that runs it; ``details`` ends its help."""

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    details: str
    usage: str | None = None
    takes_overrides: bool = False


_VERBS = {
    "data": _Verb("Build a dataset, or look at one.", _data_arguments, _DATA_HELP),
    "train": _Verb(
        "Train a model, or continue a run.",
        _train_arguments,
        _TRAIN_HELP,
        usage="unihetero train [-h] --config=FILE.py --workdir=DIR [--config.SECTION.KEY=VALUE ...]",
        takes_overrides=True,
    ),
    "eval": _Verb("Evaluate the checkpoints of a run.", _eval_arguments, _EVAL_HELP),
    "generate": _Verb("Answer a prompt with text or with a picture.", _generate_arguments, _GENERATE_HELP),
    "weights": _Verb("Import, export or list weights.", _weights_arguments, _WEIGHTS_HELP),
}


def _help() -> str:
    width = max(map(len, _VERBS)) + 2
    verbs = "\n".join(f"  {name:{width}}{verb.summary}" for name, verb in _VERBS.items())
    return f"""\
usage: unihetero VERB [ARGUMENTS]

A pretraining stack for unified vision-language models, in JAX and Flax NNX.

verbs:
{verbs}

options:
  -h, --help  show this text; unihetero VERB --help tells more about a verb
  --version   show the version

examples:
  unihetero train --config=configs/quickstart.py --workdir=runs/watch
  unihetero eval --workdir=runs/watch

exit codes:
  0   done
  2   what was typed, or a file that it names, is wrong; one line on stderr says what
  75  train only: stopped when asked to, after saving a checkpoint; run the same command again to continue
"""


def _dispatch(arguments: list[str]) -> int:
    first, *rest = arguments or ["--help"]
    if first in ("-h", "--help"):
        print(_help(), end="")
        return 0
    if first == "--version":
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r} after --version")
        print(f"unihetero {__version__}")
        return 0
    if first.startswith("-"):
        flag = first.partition("=")[0]
        hint = nearest(flag, ["--help", "--version"])
        raise UsageError(f"unknown flag {flag} before a verb: expected {_one_of(list(_VERBS))}{hint}")
    if first not in _VERBS:
        raise UsageError(f"unknown verb {first!r}: expected {_one_of(list(_VERBS))}{nearest(first, _VERBS)}")
    verb = _VERBS[first]
    parser = _Parser(prog=f"unihetero {first}", usage=verb.usage, description=verb.summary, epilog=verb.details)
    verb.arguments(parser)
    overrides: list[tuple[str, str]] = []
    if verb.takes_overrides:
        overrides, rest = _take_overrides(rest)
    try:
        options = parser.parse_args(rest)
    except SystemExit as done:
        # argparse leaves this way after --help.
        return int(done.code or 0)
    run: Callable[[argparse.Namespace], int] | None = getattr(options, "run", None)
    if run is None:
        parser.print_help()
        return 0
    options.overrides = overrides
    return run(options)


def _use_huge_pages() -> None:
    """Starts this process again with huge pages for large allocations, which glibc reads only at the start.

    On CPU, XLA takes its temporary memory anew each step; in 4 KiB pages the kernel's clearing of them costs about a
    quarter of a step. Where there is no glibc the variable means nothing; one that is set already is left alone.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
      argv: the arguments after the command's name; by default those of the process.

    Returns:
      The exit code: 0; 2 for what was typed wrong; 130 when interrupted at the keyboard; or what the verb returns.
    """
    if argv is None and sys.argv[1:2] and sys.argv[1] in _COMPUTING:
        _use_huge_pages()
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        print("unihetero: error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unihetero: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
