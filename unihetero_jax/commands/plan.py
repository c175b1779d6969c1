"""``unihetero plan``."""

from __future__ import annotations

import argparse
import json

from unihetero_jax.commands.arguments import output_file, step
from unihetero_jax.commands.overrides import add_config, load_config
from unihetero_jax.files import write_atomic
from unihetero_jax.plan.format import format_candidates, format_plan
from unihetero_jax.plan.hardware import parse_topology
from unihetero_jax.plan.planner import plan

DOES_NOT_FIT = 3

_DETAILS = """\
Compiles the real train step for chips that need not be here. Reports a step's memory, FLOPs, traffic and time, and what
the configured run would cost. --config.SECTION.KEY=VALUE changes the config, as for train. TPU topologies need
`pip install 'unihetero_jax[plan]'`; GPUs are estimated by formula.

examples:
  unihetero plan --config=configs/unihetero_7b.py --topology=v5p:8x8x4
  unihetero plan --config=configs/unihetero_7b.py --topology=v6e:16x16,slices=2 --mesh=slice=2,fsdp=128,tensor=2
  unihetero plan --config=configs/unihetero_7b.py --topology=gpu:h100x64 --search --out=plan.json

exit codes:
  0   the step fits
  2   the command line or the config is wrong; one line on stderr says what
  3   the step does not fit into the chips' memory
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, and the function that runs the verb."""
    parser.usage = (
        "unihetero plan [-h] --config=FILE.py --topology=NAME [--mesh=AXIS=N,...] [--search] [--out=FILE.json]"
    )
    parser.epilog = _DETAILS
    add_config(parser)
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
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    found = plan(
        load_config(options),
        options.topology,
        mesh=options.mesh,
        search=options.search,
        measure=options.measure,
        vocabulary=options.vocabulary,
    )
    if options.search:
        print(format_candidates(found["candidates"]))
    print(format_plan(found))
    if options.out is not None:
        write_atomic(options.out, json.dumps(found, indent=2) + "\n")
    return 0 if found["fits"] else DOES_NOT_FIT
