"""``unihetero weights import|export|inspect``."""

from __future__ import annotations

import argparse

from unihetero_jax import run
from unihetero_jax.commands.arguments import existing_directory, existing_path, output_directory, step
from unihetero_jax.weights.tensors import PARAMETER_DTYPES

_DETAILS = """\
examples:
  unihetero weights import Qwen3-0.6B --out=weights/qwen3
  unihetero weights export --workdir=runs/watch --out=exported
  unihetero weights inspect Qwen3-0.6B

exit codes:
  0   done
  2   the command line or a file is wrong; one line on stderr says what
"""
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their flags, and the function that runs each."""
    parser.epilog = _DETAILS
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(name: str, summary: str, more: str, examples: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {more}",
            epilog=examples,
        )

    made = add(
        "import",
        "convert a published folder to parameters of ours",
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
    made.add_argument("--workdir", type=existing_directory, required=True, metavar="DIR", help="the run's directory")
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
        help="the result's type, float32 or bfloat16 (default: %(default)s)",
    )


def _run_import(options: argparse.Namespace) -> int:
    run.import_weights(options.folder, options.out, options.dtype)
    return 0


def _run_export(options: argparse.Namespace) -> int:
    run.export_weights(options.workdir, options.out, options.step, options.family, options.dtype)
    return 0


def _run_inspect(options: argparse.Namespace) -> int:
    run.inspect_weights(options.path)
    return 0
