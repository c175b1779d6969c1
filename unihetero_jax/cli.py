"""``unihetero VERB``: a thin table of verbs, each a module's main.

What is typed wrong gets one line on stderr and exit code 2; so does every ``UsageError`` raised further down. Any other
exception is a mistake of ours and keeps its traceback. A verb's modules are imported when it runs, so that ``--help``
answers at once and a typing slip costs no start of JAX.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from unihetero_jax import __version__
from unihetero_jax.commands import help as cli_help
from unihetero_jax.commands import watch as cli_watch
from unihetero_jax.commands.arguments import (
    Parser,
    add_workdir,
    existing_file,
    looks_like_flag,
    one_of,
    output_directory,
    output_file,
    path,
    step,
    words,
)
from unihetero_jax.errors import UsageError, nearest

if TYPE_CHECKING:
    from unihetero_jax.config.loading import Tree

_OVERRIDE = "--config."
_COMPUTING = ("train", "towers", "bench", "eval", "generate")


def _take_overrides(arguments: Sequence[str], tree: Callable[[], Tree]) -> tuple[list[tuple[str, str]], list[str]]:
    """Splits ``--config.KEY=VALUE`` and ``--config.KEY VALUE`` from the other arguments.

    The keys are not declared to argparse: there are a hundred of them, and they belong to the config tree.

    Args:
      arguments: of the verb.
      tree: what is configured; asked only where a value is missing.
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
            if not queue or looks_like_flag(queue[0]):
                raise _missing_value(key, tree())
            text = queue.pop(0)
        overrides.append((key, text))
    return overrides, others


def _missing_value(key: str, tree: Tree) -> UsageError:
    """Of an override without a value; that its key is wrong is the more useful complaint."""
    from unihetero_jax.config import loading as config_file

    expected = config_file.value_type(key, tree).describe()
    return UsageError(f"{_OVERRIDE}{key} has no value: expected {expected}, as in {_OVERRIDE}{key}=VALUE")


def _unified_tree(arguments: Sequence[str]) -> Tree:
    del arguments
    from unihetero_jax.config import loading as config_file

    return config_file.UNIFIED


def _tower_tree(arguments: Sequence[str]) -> Tree:
    """That of the kind which the arguments name; without one the parser has the more useful complaint."""
    from unihetero_jax.config import loading as config_file
    from unihetero_jax.train.towers import config as tower_config

    trained = arguments[1:] if arguments[:1] == ["train"] else ()
    kind = next((argument for argument in trained if argument in tower_config.ROOTS), None)
    return config_file.UNIFIED if kind is None else tower_config.tree(kind)


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    from unihetero_jax.commands import data as data_cli

    data_cli.add_verbs(parser)
    # The data's own verbs know nothing of configs.
    parser.set_defaults(inspect_mixture=_inspect_mixture)


def _inspect_mixture(options: argparse.Namespace) -> int:
    from unihetero_jax.config import loading as config_file

    config = config_file.load(options.config, options.overrides)
    from unihetero_jax.run import inspect_mixture as inspect

    return inspect.run(config, options.config.stem, options.rows, options.json)


def _weights_arguments(parser: argparse.ArgumentParser) -> None:
    from unihetero_jax.commands import weights as weights_cli

    weights_cli.add_verbs(parser)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.set_defaults(run=_train)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=path,
        required=True,
        metavar="FILE.py",
        help="the experiment: a Python file with get_config()",
    )
    parser.add_argument(
        "--workdir",
        type=output_directory,
        required=True,
        metavar="DIR",
        help="where checkpoints, metrics and the dataset (unless --config.data.root is set) go; created when missing",
    )


def _towers_arguments(parser: argparse.ArgumentParser) -> None:
    from unihetero_jax.train.towers import config as tower_config

    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    made = verbs.add_parser(
        "train",
        help="train a small tower of our own",
        usage="unihetero towers train KIND --config=FILE.py --workdir=DIR [--config.SECTION.KEY=VALUE ...]",
        description="Train a tower, or continue a run.",
        epilog=cli_help.TOWERS,
    )
    kinds = ", ".join(tower_config.ROOTS)
    made.add_argument("kind", choices=list(tower_config.ROOTS), metavar="KIND", help=f"which tower: {kinds}")
    _add_run(made)
    made.set_defaults(run=_train_tower)
    stored = verbs.add_parser(
        "features",
        help="compute the features of a dataset's images, for many trainings",
        usage="unihetero towers features --config=FILE.py --out=DIR [--config.SECTION.KEY=VALUE ...]",
        description="Run the frozen towers of an experiment over every image of its tasks. A training whose towers "
        "have cached=True reads the folder from config.data.features instead of running them.",
        epilog=cli_help.TOWERS,
    )
    stored.add_argument(
        "--config",
        type=path,
        required=True,
        metavar="FILE.py",
        help="the experiment: a Python file with get_config(); config.data.root has to be set",
    )
    stored.add_argument("--out", type=output_directory, required=True, metavar="DIR", help="the folder to make")
    stored.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        metavar="TYPE",
        help="of what is stored, float16 or float32 (default: %(default)s)",
    )
    stored.add_argument(
        "--split",
        choices=("train", "test", "both"),
        default="both",
        metavar="SPLIT",
        help="of the dataset: train, test or both (default: %(default)s)",
    )
    stored.set_defaults(run=_store_features)


def _store_features(options: argparse.Namespace) -> int:
    from unihetero_jax.config import loading as config_file

    config = config_file.load(options.config, options.overrides)
    from unihetero_jax.run import compute_features as features

    return features.run(
        config, options.out, options.dtype, features.SPLITS if options.split == "both" else (options.split,)
    )


def _train_tower(options: argparse.Namespace) -> int:
    from unihetero_jax.config import loading as config_file
    from unihetero_jax.train.towers import config as tower_config

    config = config_file.load(options.config, options.overrides, tower_config.tree(options.kind))
    from unihetero_jax.run import evaluate_tower as towers
    from unihetero_jax.run import train_tower as tower_main

    return tower_main.run(config, options.workdir, towers.finish)


def _train(options: argparse.Namespace) -> int:
    from unihetero_jax.config import loading as config_file

    # Before the trainer is imported: a slip in the config should not wait for JAX.
    config = config_file.load(options.config, options.overrides)
    from unihetero_jax.run import evaluation
    from unihetero_jax.run import train as train_main

    evaluation.check(config)
    return train_main.run(config, options.workdir, evaluation.finish)


def _study_arguments(parser: argparse.ArgumentParser) -> None:
    from unihetero_jax.commands import study as study_cli

    study_cli.add_verbs(parser)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    from unihetero_jax.plan.hardware import parse_topology

    parser.add_argument(
        "--config", type=path, required=True, metavar="FILE.py", help="the experiment: a Python file with get_config()"
    )
    parser.add_argument(
        "--topology",
        type=parse_topology,
        required=True,
        metavar="NAME",
        help="v4, v5e, v5p or v6e and the shape of a slice, v5p:8x8x8[,slices=2]; gpu:h100x64; cpu:8",
    )
    parser.add_argument("--mesh", metavar="AXIS=N,...", help="instead of config.mesh, as fsdp=64,tensor=4")
    parser.add_argument("--search", action="store_true", help="try meshes, remat policies and batches (default: no)")
    parser.add_argument("--measure", action="store_true", help="also run the step on the devices here (default: no)")
    parser.add_argument("--vocabulary", type=step, metavar="N", help="token ids (default: the tokenizer's, if here)")
    parser.add_argument("--out", type=output_file, metavar="FILE.json", help="also write the plan here (default: no)")
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from unihetero_jax.config import loading as config_file

    config = config_file.load(options.config, options.overrides)
    from unihetero_jax.plan import planning as plan_main

    if options.mesh is not None:
        config = plan_main.with_mesh(config, options.mesh)
    asked = plan_main.Options(options.search, options.measure, options.out, options.vocabulary)
    return plan_main.run(config, options.topology, asked)


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=step, metavar="N", help="the checkpoint to evaluate (default: the newest)")
    which.add_argument(
        "--follow",
        action="store_true",
        help="evaluate each checkpoint as it is written, until the run is complete (default: one checkpoint)",
    )
    parser.add_argument("--out", type=output_file, metavar="FILE.json", help="also write the scores here (default: no)")
    parser.set_defaults(run=_eval)


def _eval(options: argparse.Namespace) -> int:
    from unihetero_jax.config import Config
    from unihetero_jax.config import loading as config_file

    stored = options.workdir / "config.json"
    if options.overrides:
        # Before the evaluators' JAX is imported: a slip should not wait for it.
        config = config_file.load(stored) if stored.is_file() else Config()
        config_file.change(config, options.overrides, ("evaluate", "evaluators"))
    from unihetero_jax.run import evaluation

    changes = dict(options.overrides)
    if options.follow:
        evaluation.follow(options.workdir, changes, options.out)
    else:
        evaluation.evaluate(options.workdir, options.step, changes, options.out)
    return 0


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--prompt", type=words, required=True, metavar="TEXT", help="a question, or what to draw")
    parser.add_argument("--image", type=existing_file, metavar="FILE", help="a picture to ask about (default: none)")
    parser.add_argument("--out", type=output_file, metavar="FILE", help="write the result to this file")
    parser.add_argument("--step", type=step, metavar="N", help="the checkpoint to use (default: the newest)")
    for name, (kind, metavar, text) in _SAMPLING.items():
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    parser.set_defaults(run=_generate)


_SAMPLING: dict[str, tuple[type, str, str]] = {
    "temperature": (float, "T", "how freely words are chosen; 0: always the likeliest (default: 0)"),
    "top_k": (int, "K", "choose among so many of the likeliest words; 0: all (default: 0)"),
    "top_p": (float, "P", "choose among the fewest words whose probabilities add up to this (default: 1)"),
    "guidance": (float, "G", "how far a picture is led towards the prompt; 1: no further (default: as configured)"),
    "pixel_guidance": (float, "G", "the same of a diffusion head behind embeddings (default: as configured)"),
    "code_temperature": (float, "T", "how freely codes of pictures are chosen; 0: always the likeliest (default: 1)"),
    "code_top_k": (int, "K", "choose among so many of the likeliest codes; 0: all (default: 0)"),
    "code_top_p": (float, "P", "choose among the fewest codes whose probabilities add up to this (default: 1)"),
    "stop": (str, "TEXT", "cut the answer before this text (default: nothing)"),
    "seed": (int, "N", "of everything random (default: 0)"),
    "max_tokens": (int, "N", "most tokens of text (default: 128)"),
    "max_images": (int, "N", "most pictures (default: 1)"),
}


def _generate(options: argparse.Namespace) -> int:
    from unihetero_jax.run import generation

    given = {name: getattr(options, name) for name in _SAMPLING if getattr(options, name) is not None}
    generation.run(options.workdir, options.prompt, options.image, options.out, options.step, given)
    return 0


@dataclass(frozen=True)
class _Verb:
    """``arguments`` declares a verb's flags and the function that runs it; ``details`` ends its help."""

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    details: str
    usage: str | None = None
    overrides: Callable[[Sequence[str]], Tree] | None = None


_VERBS = {
    "data": _Verb(
        "Build a dataset, import your own, or look at one.", _data_arguments, cli_help.DATA, overrides=_unified_tree
    ),
    "train": _Verb(
        "Train a model, or continue a run.",
        _train_arguments,
        cli_help.TRAIN,
        usage="unihetero train [-h] --config=FILE.py --workdir=DIR [--config.SECTION.KEY=VALUE ...]",
        overrides=_unified_tree,
    ),
    "towers": _Verb(
        "Train small towers of our own, or store features.", _towers_arguments, cli_help.TOWERS, overrides=_tower_tree
    ),
    "bench": _Verb(
        "Measure input, step and both on the devices here.",
        cli_watch.bench_arguments,
        cli_help.BENCH,
        usage="unihetero bench [-h] --config=FILE.py [--steps=N] [--out=FILE.json] [--config.SECTION.KEY=VALUE ...]",
        overrides=_unified_tree,
    ),
    "status": _Verb("Tell how far a run is, and where its time went.", cli_watch.status_arguments, cli_help.STATUS),
    "eval": _Verb(
        "Evaluate the checkpoints of a run.",
        _eval_arguments,
        cli_help.EVAL,
        usage="unihetero eval [-h] --workdir=DIR [--step=N | --follow] [--out=FILE.json] "
        "[--config.evaluate.KEY=VALUE ...] [--config.evaluators.NAME.KEY=VALUE ...]",
        overrides=_unified_tree,
    ),
    "generate": _Verb("Answer a prompt with text or with a picture.", _generate_arguments, cli_help.GENERATE),
    "weights": _Verb("Import, export or list weights.", _weights_arguments, cli_help.WEIGHTS),
    "study": _Verb("Run a study and report which of its claims hold.", _study_arguments, cli_help.STUDY),
    "plan": _Verb(
        "Tell what a run needs on hardware that is not here.",
        _plan_arguments,
        cli_help.PLAN,
        usage="unihetero plan [-h] --config=FILE.py --topology=NAME [--mesh=AXIS=N,...] [--search] [--out=FILE.json]",
        overrides=_unified_tree,
    ),
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
  75  train only: saved when asked to stop, hung, or another host is lost; run the same command again to continue
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
        raise UsageError(f"unknown flag {flag} before a verb: expected {one_of(list(_VERBS))}{hint}")
    if first not in _VERBS:
        raise UsageError(f"unknown verb {first!r}: expected {one_of(list(_VERBS))}{nearest(first, _VERBS)}")
    verb = _VERBS[first]
    parser = Parser(prog=f"unihetero {first}", usage=verb.usage, description=verb.summary, epilog=verb.details)
    verb.arguments(parser)
    overrides: list[tuple[str, str]] = []
    if verb.overrides is not None:
        overrides, rest = _take_overrides(rest, partial(verb.overrides, rest))
    try:
        options = parser.parse_args(rest)
    except SystemExit as done:
        # argparse leaves this way after --help.
        return int(done.code or 0)
    run: Callable[[argparse.Namespace], int] | None = getattr(options, "run", None)
    if run is None:
        parser.print_help()
        return 0
    if overrides and run is not _eval and getattr(options, "config", None) is None:
        raise UsageError(
            f"{_OVERRIDE}{overrides[0][0]}: there is no config that it could change, as in --config=FILE.py"
        )
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
      The exit code: 0; 2 for what was typed wrong; 130 when interrupted at the keyboard; 141 when nobody reads what is
      printed any more; or what the verb returns.
    """
    if argv is None and sys.argv[1:2] and sys.argv[1] in _COMPUTING:
        # It asks a run for a trace, and must not end one that has not begun to train. What `exec` starts inherits this.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        _use_huge_pages()
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except UsageError as error:
        print("unihetero: error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unihetero: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who read our words has left, as ``| head`` does. Python would say so again when it flushes them at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
