"""``unihetero generate``."""

from __future__ import annotations

import argparse

from unihetero_jax import run
from unihetero_jax.commands.arguments import add_workdir, existing_file, output_file, step, words

_DETAILS = """\
examples:
  unihetero generate --workdir=runs/watch --image=watch.png --prompt="What time does the watch show?"
  unihetero generate --workdir=runs/watch --prompt="a watch that shows 10:08:42" --out=watch.png
  unihetero generate --workdir=runs/watch --prompt="a watch" --out=watch.png --temperature=0.7 --guidance=3 --seed=1

exit codes:
  0   the result is written
  2   the command line is wrong, or there is no such checkpoint; one line on stderr says what
"""

_SAMPLING: dict[str, tuple[type, str, str]] = {
    "temperature": (float, "T", "temperature of sampling text tokens; 0: always the likeliest (default: 0)"),
    "top_k": (int, "K", "sample among the K likeliest tokens; 0: all (default: 0)"),
    "top_p": (float, "P", "sample among the fewest tokens whose probabilities add up to P (default: 1)"),
    "guidance": (float, "G", "classifier-free guidance of images; 1: none (default: as configured)"),
    "pixel_guidance": (float, "G", "guidance of a diffusion head behind embeddings (default: as configured)"),
    "code_temperature": (float, "T", "temperature of sampling image codes; 0: always the likeliest (default: 1)"),
    "code_top_k": (int, "K", "sample among the K likeliest codes; 0: all (default: 0)"),
    "code_top_p": (float, "P", "sample among the fewest codes whose probabilities add up to P (default: 1)"),
    "stop": (str, "TEXT", "end the answer before this text (default: nothing)"),
    "seed": (int, "N", "seed of all random numbers (default: 0)"),
    "max_tokens": (int, "N", "most tokens of text (default: 128)"),
    "max_images": (int, "N", "most images (default: 1)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, and the function that runs the verb."""
    parser.epilog = _DETAILS
    add_workdir(parser)
    parser.add_argument("--prompt", type=words, required=True, metavar="TEXT", help="a question, or an image to make")
    parser.add_argument("--image", type=existing_file, metavar="FILE", help="an image to ask about (default: none)")
    parser.add_argument("--out", type=output_file, metavar="FILE", help="write the result to this file")
    parser.add_argument("--step", type=step, metavar="N", help="the checkpoint to use (default: the newest)")
    for name, (kind, metavar, text) in _SAMPLING.items():
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in _SAMPLING if getattr(options, name) is not None}
    run.generate(options.workdir, options.prompt, image=options.image, out=options.out, step=options.step, **given)
    return 0
