"""``unihetero VERB``: a table of verbs, each a module of ``unihetero_jax.commands`` that declares its flags.

A slip in what is typed gets one line on stderr and exit code 2; so does every ``UsageError`` raised further down. A
verb's module is imported when the verb is typed, and JAX when it runs: neither ``--help`` nor a slip waits for it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from unihetero_jax import __version__
from unihetero_jax.commands.arguments import OVERRIDE, Parser, one_of, split_overrides
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.parallel.startup import use_huge_pages

_VERBS = {
    "config": "Print a resolved config with the meaning of its keys.",
    "data": "Build a dataset, import your own, or inspect one.",
    "train": "Train a model, or continue a run.",
    "towers": "Train small towers, or store features.",
    "bench": "Measure input, step and both on the devices here.",
    "status": "Report the progress of a run, and where its time went.",
    "eval": "Evaluate the checkpoints of a run.",
    "generate": "Answer a prompt with text or with an image.",
    "weights": "Import, export or list weights.",
    "study": "Run a study and report which of its claims hold.",
    "plan": "Report what a run needs on hardware that need not be here.",
}
_FLAGS = ("--help", "--version")
_COMPUTING = ("train", "towers", "bench", "eval", "generate")
_HELP = f"""\
usage: unihetero VERB [ARGUMENTS]

A pretraining stack for unified vision-language models, in JAX and Flax NNX.

verbs:
{chr(10).join(f"  {name:{max(map(len, _VERBS)) + 2}}{summary}" for name, summary in _VERBS.items())}

options:
  -h, --help  show this text; unihetero VERB --help describes a verb
  --version   show the version

examples:
  unihetero train --config=configs/quickstart.py --workdir=runs/watch
  unihetero eval --workdir=runs/watch

exit codes:
  0   done
  1   train only: the loss was not finite
  2   the command line, or a file that it names, is wrong; one line on stderr says what
  75  train only: saved when asked to stop, hung, or another host is lost; run the same command again to continue
"""


def _run(arguments: list[str]) -> int:
    first, *rest = arguments or ["--help"]
    if first in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if first == "--version":
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r} after --version")
        print(f"unihetero {__version__}")
        return 0
    if first not in _VERBS:
        name = first.partition("=")[0]
        what, known = (f"flag {name} before a verb", _FLAGS) if first.startswith("-") else (f"verb {first!r}", _VERBS)
        raise UsageError(f"unknown {what}: expected {one_of(list(_VERBS))}{nearest(name, known)}")
    parser = Parser(prog=f"unihetero {first}", description=_VERBS[first])
    importlib.import_module(f"unihetero_jax.commands.{first}").add_arguments(parser)
    overrides, rest = split_overrides(rest)
    try:
        options = parser.parse_args(rest)
    except SystemExit as done:  # argparse leaves this way after --help
        return int(done.code or 0)
    if overrides and not hasattr(options, "overrides"):
        raise UsageError(f"{OVERRIDE}{overrides[0][0]}: there is no config that it could change")
    options.overrides = overrides
    return int(options.run(options))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
      argv: the arguments after the command's name; by default those of the process.

    Returns:
      The exit code: 0; 1 for an error in a user's component; 2 for a slip in what was typed; 130 after an interrupt at
      the keyboard; 141 when nobody reads the output any more; or what the verb returns.
    """
    if argv is None and sys.argv[1:2] and sys.argv[1] in _COMPUTING:
        # SIGUSR1 asks a run for a trace, and must not end one that has not begun to train. The new process inherits it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        use_huge_pages()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except UsageError as error:
        print("unihetero: error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unihetero: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has left, as ``| head`` does. Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        # Later than --help, which would wait for what the config package imports.
        from unihetero_jax.config.user_files import own_traceback

        if not (lines := own_traceback(error)):
            raise
        print(lines, end="", file=sys.stderr)
        return 1
