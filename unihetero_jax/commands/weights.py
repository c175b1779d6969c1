"""The verbs of ``unihetero weights``: what they take, and what they call."""

from __future__ import annotations

import argparse

from unihetero_jax.commands.arguments import existing_directory, existing_path, output_directory, step
from unihetero_jax.weights.tensors import PARAMETER_DTYPES

_IMPORT_EXAMPLES = """examples:
  unihetero weights import Qwen3-0.6B --out=weights/qwen3
  unihetero weights import vicuna-7b-v1.5 --out=weights/vicuna --dtype=bfloat16
"""
_EXPORT_EXAMPLES = """examples:
  unihetero weights export --workdir=runs/watch --out=exported
  unihetero weights export --workdir=runs/watch --out=exported --step=200 --family=llama
"""
_INSPECT_EXAMPLES = """examples:
  unihetero weights inspect Qwen3-0.6B
  unihetero weights inspect model.safetensors
"""


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Adds ``import``, ``export`` and ``inspect``; each sets ``run`` to a function that gives an exit code.

    Args:
        parser: The parser of ``unihetero weights``.
    """
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(name: str, summary: str, more: str, examples: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {more}",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    made = add(
        "import",
        "turn a published folder into parameters of ours",
        "Writes an Orbax checkpoint (params), config.json, and the tokenizer as it is.",
        _IMPORT_EXAMPLES,
    )
    made.add_argument(
        "folder", type=existing_directory, metavar="FOLDER", help="with config.json and safetensors or torch files"
    )
    made.add_argument("--out", type=output_directory, required=True, metavar="DIR", help="the directory to make")
    _add_dtype(made)
    made.set_defaults(run=_run_import)

    made = add(
        "export",
        "write the decoder of a run as a folder that transformers loads",
        "Towers, adapters and heads stay behind.",
        _EXPORT_EXAMPLES,
    )
    made.add_argument("--workdir", type=existing_directory, required=True, metavar="DIR", help="of the training run")
    made.add_argument("--out", type=output_directory, required=True, metavar="FOLDER", help="the folder to make")
    made.add_argument("--step", type=step, metavar="N", help="the checkpoint to export (default: the newest)")
    made.add_argument("--family", metavar="NAME", help="llama, qwen2 or qwen3 (default: the one that fits)")
    _add_dtype(made)
    made.set_defaults(run=_run_export)

    made = add(
        "inspect",
        "list the tensors of a folder or file",
        "Names, shapes, types and their sum, what it is taken for, and the config of a run that starts from it.",
        _INSPECT_EXAMPLES,
    )
    made.add_argument(
        "path", type=existing_path, metavar="PATH", help="a published folder, an import, or a file of tensors"
    )
    made.set_defaults(run=_run_inspect)


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=tuple(PARAMETER_DTYPES),
        default="float32",
        metavar="TYPE",
        help="float32 or bfloat16, of the result (default: %(default)s)",
    )


def _run_import(options: argparse.Namespace) -> int:
    from unihetero_jax.run import convert_weights as main

    return main.import_folder(options.folder, options.out, options.dtype)


def _run_export(options: argparse.Namespace) -> int:
    from unihetero_jax.run import convert_weights as main

    return main.export_run(options.workdir, options.out, options.step, options.family, options.dtype)


def _run_inspect(options: argparse.Namespace) -> int:
    from unihetero_jax.run import convert_weights as main

    return main.inspect(options.path)
