"""What compiling for TPUs costs and finds, from shallow to deep and from 64 to 512 chips. Needs libtpu.

    python tests/benchmarks/plans.py [--only=depth|chips] [--config=configs/unihetero_7b.py]

``depth``: seconds of compilation with 4 and with 32 layers; the target is a ratio of 1.3. Processor time counts, which
other work on the machine changes little. ``chips``: FSDP over 64, 128, 256 and 512 chips of v5p, as many rows on each,
without the pixel objective and with 4 layers: bytes that a chip receives a step against the least, with gradients in
float32 and in bfloat16, and the share of what is neither a gather nor a sum. The least is that of parameters gathered
twice and gradients scattered once; the target is 5% above it, and no chip holds logits of others.

Prints a line for each plan and, last, one JSON object. Exit code 1 beyond a target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGIES = ("v5p:4x4x4", "v5p:4x4x8", "v5p:8x8x4", "v5p:8x8x8")
ROWS = 2
DEEPER, BEYOND = 1.3, 1.05
EXPECTED = ("all-gather", "reduce-scatter", "all-reduce")


def plan(config: str, topology: str, *overrides: str) -> dict[str, Any]:
    """The plan of a config on a topology."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "unihetero_jax", "plan", f"--config={config}", f"--topology={topology}"]
        command += [f"--out={out}", *(f"--config.{text}" for text in overrides)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def depth(config: str) -> dict[str, float]:
    """Processor seconds of a plan with few layers and with many."""
    seconds = {}
    for layers in (4, 32):
        found = plan(config, "v5p:8x8x4", f"model.decoder.layers={layers}")
        seconds[layers] = found["cpu_seconds"]
        print(
            f"{layers:3} layers: {found['cpu_seconds']:.0f} s of processor time, {found['compile_seconds']:.0f} s to "
            f"compile, {found['peak_host_bytes'] / 2**30:.2f} GiB",
            flush=True,
        )
    return {"shallow_seconds": seconds[4], "deep_seconds": seconds[32], "ratio": seconds[32] / seconds[4]}


def chips(config: str) -> list[dict[str, float]]:
    """Traffic a chip and step against the least, for growing numbers of chips."""
    rows = []
    for topology in TOPOLOGIES:
        count = 1
        for side in topology.split(":")[1].split("x"):
            count *= int(side)
        overrides = ("model.decoder.layers=4", "losses.pixel.weight=0", f"train.batch_size={ROWS * count}")
        found = plan(config, topology, *overrides)
        moved = sum(entry["bytes"] for entry in found["collectives"])
        others = sum(entry["bytes"] for entry in found["collectives"] if entry["kind"] not in EXPECTED)
        links = found["links"]
        rows.append(
            {
                "chips": count,
                "gib": moved / 2**30,
                "ratio_float32": links["ratio_float32"],
                "ratio_bfloat16": links["ratio_bfloat16"],
                "others": others / moved,
                "logits_replicated": found["logits_replicated"],
                "cpu_seconds": found["cpu_seconds"],
            }
        )
        print(
            f"{count:4} chips: {moved / 2**30:.2f} GiB a chip, {links['ratio_float32']:.3f} of the least with "
            f"gradients in float32, {links['ratio_bfloat16']:.3f} in bfloat16; {others / moved:.1%} are neither "
            "gathers nor sums",
            flush=True,
        )
    return rows


def main() -> int:
    """Compiles, prints the table, and compares with the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("depth", "chips"))
    parser.add_argument("--config", default="configs/unihetero_7b.py")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if options.only != "chips":
        found["depth"] = depth(options.config)
    if options.only != "depth":
        found["chips"] = chips(options.config)
    print(json.dumps(found))
    missed = found.get("depth", {"ratio": 0})["ratio"] > DEEPER
    missed |= any(row["ratio_float32"] > BEYOND or row["logits_replicated"] for row in found.get("chips", ()))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
