"""Weak scaling from one process to two on this machine: as many rows for each, one core for each.

    python tests/benchmarks/weak_scaling.py [--axis=slice]

`unihetero bench` measures a train step on one core alone; then on two cores as two processes of one job, with twice the
rows; then as two jobs that know nothing of each other. The last shows what two cores lose by being neighbours (caches,
memory, the clock); what the job of two loses beyond that is its own. The three take turns, and medians are compared.

Prints a line for each measurement and, last, one JSON object: ``weak_scaling`` is the time of a step alone over that of
the job of two; the target is 0.85. Exit code 1 below it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

TARGET = 0.85
# Steps long enough that two processes do not spend them on meeting each other.
SIZES = ("model.decoder.width=256", "model.decoder.layers=4", "model.decoder.mlp_width=768", "data.read_ahead=2")


def start(
    core: int, data: Path, out: Path, steps: int, rows: int, mesh: str, job: dict[str, str]
) -> subprocess.Popen[str]:
    """`unihetero bench` on one core."""
    command = [
        *("taskset", "--cpu-list", str(core), sys.executable, "-m", "unihetero_jax", "bench", f"--config={runs.TINY}"),
        *(f"--out={out}", f"--steps={steps}", f"--config.data.root={data}", f"--config.train.batch_size={rows}"),
        *(f"--config.{size}" for size in (*SIZES, mesh)),
    ]
    return subprocess.Popen(
        command,
        cwd=runs.ROOT,
        env=runs.environment(optimized=True, **job),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def measure(kind: str, cores: list[int], data: Path, place: Path, steps: int, rows: int, axis: str) -> list[dict]:
    """What the processes of a kind (``alone``, ``job`` or ``neighbours``) found."""
    cores = cores[:1] if kind == "alone" else cores
    together = len(cores) if kind == "job" else 1
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started, outs = [], []
    for number, core in enumerate(cores):
        job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(together), "JAX_PROCESS_ID": str(number)}
        outs.append(place / f"{kind}-{number}.json")
        mesh = f"mesh.{axis}={together}"
        started.append(start(core, data, outs[-1], steps, rows * together, mesh, job if together > 1 else {}))
    for process in started:
        runs.finish(process)
    return [json.loads(out.read_text()) for out in outs if out.exists()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=16, help="of each process (default: %(default)s)")
    parser.add_argument(
        "--axis", choices=("fsdp", "slice"), default="fsdp", help="split parameters too, or rows alone (default: fsdp)"
    )
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        print("weak_scaling.py: two cores are needed, here is one", file=sys.stderr)
        return 2
    place = Path(tempfile.mkdtemp(prefix="weak-scaling-"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place / "cache")
    seconds: dict[str, list[float]] = {"alone": [], "job": [], "neighbours": []}
    try:
        data = runs.build_dataset(place / "data")
        for number in range(options.rounds):
            for kind, found in seconds.items():
                answers = measure(kind, cores, data, place, options.steps, options.rows, options.axis)
                found.append(max(answer["real_step_seconds"]["p50"] for answer in answers))
                print(f"round {number + 1}: {kind:10} {found[-1]:.4f} s a step", flush=True)
    finally:
        shutil.rmtree(place)
    medians = {kind: statistics.median(found) for kind, found in seconds.items()}
    scaling = medians["alone"] / medians["job"]
    result = {
        "axis": options.axis,
        "rows_per_process": options.rows,
        "step_seconds": medians,
        "all_step_seconds": seconds,
        "weak_scaling": scaling,
        "neighbours": medians["alone"] / medians["neighbours"],
        "target": TARGET,
    }
    print(json.dumps(result))
    return 0 if scaling >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
