"""``unihetero plan``."""

from __future__ import annotations

import argparse
import json

from unihetero_jax.commands.arguments import output_file, path, step
from unihetero_jax.config import loading
from unihetero_jax.files import write_atomic
from unihetero_jax.plan.format import format_candidates, format_plan
from unihetero_jax.plan.hardware import parse_topology
from unihetero_jax.plan.planner import plan

DOES_NOT_FIT = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, and the function that runs the verb."""
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
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = loading.load(options.config, options.overrides)
    found = plan(
        config,
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
