"""The verb ``unihetero data import``: a sub-command per registered importer, with the options that it declares."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from unihetero_jax.commands.arguments import Parser, existing_directory, existing_file, output_directory
from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.config.user_files import import_components
from unihetero_jax.data.ingest.importer import Importer, Option
from unihetero_jax.data.ingest.settings import Settings, Steps
from unihetero_jax.data.packing.processes import usable_cores
from unihetero_jax.errors import UsageError

_EXAMPLES = """examples:
  unihetero data import folder photos --table=photos/captions.csv --out=data/photos
  unihetero data import webdataset 'laion/{00000..00127}.tar' --out=data/laion --resize=256 --min_side=128
  unihetero data import llava llava_v1_5_mix665k.json --image_root=images --out=data/llava

With --imports=FILE.py before KIND, the importers that this file registers are there too.

DIR appears when it is complete. The same command again, after whatever stopped it, continues from there; the content of
DIR depends on the input and the flags, not on --workers. Each record that is left out is counted by its reason.
"""
_BEAM_EXAMPLE = """

on a cluster, with Apache Beam (pip install 'unihetero_jax[prepare]'; Beam's own options follow --, and DIR and the
input have to be files that every worker can read):
  unihetero data import {} INPUT --out=/shared/data --beam -- --runner=FlinkRunner --flink_master=HOST:8081
"""
_CHECKS: dict[str, Callable[[str], Any]] = {"": str, "file": existing_file, "directory": existing_directory}


def add_verb(verbs: Any) -> None:
    """Add ``import`` to the verbs of ``unihetero data``."""
    parser = verbs.add_parser(
        "import",
        prepare=_add_importers,
        help="make a dataset of your own files",
        description="Make a dataset of your own images and texts, in one of several formats.",
        usage="%(prog)s [-h] [--imports=FILE.py] KIND ...",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--imports", metavar="FILE.py", help="Python file, or module, that registers importers")


def _add_importers(parser: Parser, arguments: list[str]) -> list[str]:
    """Import the user's files, and add a verb for each importer, or for the one that is asked for."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [argument for argument in arguments[:end] if argument.startswith("--imports=")]
    import_components(name for flag in flags for name in flag.partition("=")[2].split(",") if name)
    own = [argument for argument in arguments[:end] if argument not in flags] + arguments[end:]
    kinds = IMPORTERS.kinds()
    asked = next((argument for argument in own if not argument.startswith("-")), "")
    verbs = parser.add_subparsers(title="importers", metavar="KIND", required=True, prog=parser.prog)
    for kind in [asked] if asked in kinds else kinds:
        _add_importer(verbs, kind)
    return own


def _add_importer(verbs: Any, kind: str) -> None:
    importer = IMPORTERS.find(kind)
    examples = f"examples:{importer.examples}\n" if importer.examples else ""
    parser = verbs.add_parser(
        kind,
        prepare=_take_beam_options,
        help=importer.summary,
        description=importer.summary,
        epilog=examples + _BEAM_EXAMPLE.format(kind),
    )
    add_options(parser, importer)
    parser.add_argument("--out", type=output_directory, metavar="DIR", required=True, help="the directory to make")
    add_options(parser, Settings)
    add_options(parser, Steps)
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes; the result does not depend on it (default: usable cores)"
    )
    parser.add_argument("--beam", action="store_true", help="do the work with Apache Beam; its options follow --")
    parser.set_defaults(run=lambda parsed: _run(parsed, importer))


def _take_beam_options(parser: Parser, arguments: list[str]) -> list[str]:
    """Store the arguments after ``--``, which are for Beam, and return the others."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser.set_defaults(beam_options=arguments[end + 1 :])
    return arguments[:end]


def add_options(parser: argparse.ArgumentParser, section: type) -> None:
    """Declare a flag or positional argument for every field of a dataclass that has an `Option`."""
    for field in dataclasses.fields(section):
        about: Option | None = field.metadata.get("option")
        if about is None:
            continue
        if isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", action="store_true", help=about.help)
            continue
        settings: dict[str, Any] = {"type": _type(about), "metavar": about.metavar, "help": about.help}
        if about.positional:
            parser.add_argument(field.name, nargs="+" if about.many else None, **settings)
            continue
        if about.without_value is not None:
            settings |= {"nargs": "?", "const": about.without_value}
        required = field.default is field.default_factory is dataclasses.MISSING
        parser.add_argument(f"--{about.flag or field.name}", dest=field.name, required=required, **settings)


def _type(about: Option) -> Callable[[str], Any]:
    if not about.exists:
        return about.parse
    check = _CHECKS[about.exists]

    @functools.wraps(check)
    def parse(text: str) -> Any:
        return about.parse(str(check(text)))

    return parse


def given(arguments: argparse.Namespace, section: type) -> dict[str, Any]:
    """Return the fields of a dataclass that were given; the others keep their own defaults."""
    names = [field.name for field in dataclasses.fields(section) if "option" in field.metadata]
    values = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _run(arguments: argparse.Namespace, importer: type[Importer]) -> int:
    # NumPy, Pillow and TFDS are heavy, and the help does not need them.
    from unihetero_jax.data.ingest.write import Execute, Pool, import_dataset

    if arguments.beam_options and not arguments.beam:
        raise UsageError(f"unexpected {arguments.beam_options[0]!r} after --: expected --beam before it")
    if arguments.beam and arguments.workers is not None:
        raise UsageError("--workers with --beam: their number is one of Beam's own options, after --")
    settings = Settings(steps=Steps(**given(arguments, Steps)), **given(arguments, Settings))
    execute: Execute
    if arguments.beam:
        # Apache Beam is optional.
        from unihetero_jax.data.ingest.beam import Beam

        execute = Beam(arguments.beam_options)
    else:
        execute = Pool(usable_cores() if arguments.workers is None else arguments.workers)
    import_dataset(importer(**given(arguments, importer)), arguments.out, settings, execute)
    return 0
