"""Runs of a tiny study side by side, a process each, against several seeds in one compiled program.

    python tests/benchmarks/seeds.py [--seeds=5] [--seconds=8] [--rounds=3]

Either way all cores are there. ``processes``: as many processes as cores, each stepping a run of its own, as
``unihetero study run --jobs=N`` starts them. ``program``: one process, whose step is that of all seeds at once
(``jax.vmap`` over state and batch). The step is that of ``mutual_benefit``'s mixed SigLIP-SigLIP arm at scale ``tiny``,
on stored features, on rows whose slots are all in use; reading data, evaluation, start and compilation are left out.

Prints JSON: steps of one seed a second, and program / processes by rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def steps_a_second(seeds: int, seconds: float, begin_at: float) -> float:
    """Steps a second of one program, times the seeds that it steps; times begin when all processes have compiled."""
    import jax
    import jax.numpy as jnp

    from unihetero_jax.config import resolve
    from unihetero_jax.model.build import define
    from unihetero_jax.parallel.mesh import make_mesh, sharding
    from unihetero_jax.plan.lowering import batch_shapes
    from unihetero_jax.study.studies import mutual_benefit
    from unihetero_jax.train.state import initial_state
    from unihetero_jax.train.step import make_step
    from unihetero_jax.train.unified import UnifiedLearner

    values = mutual_benefit.experiment({"pairing": "siglip_siglip", "trained": "mixed"}, "tiny")
    values.train.gradient_cosines_every = 0
    values.model.understanding_tower.cached = True
    values.data.features = "stored"
    config = resolve(values)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    learner = UnifiedLearner(config, define(config, 1024))
    optimizer = learner.optimizer()
    filled = {"segment": 1, "role": 3, "image": -1, "patch": -1, "text_weight": 1}
    batch = {
        name: jnp.full(shape.shape, filled.get(name, 0), shape.dtype)
        for name, shape in batch_shapes(config, sharding(mesh, "batch")).items()
    }
    state, step = jax.jit(lambda: initial_state(learner, optimizer))(), make_step(learner, optimizer, mesh)
    if seeds > 1:
        state, batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * seeds), (state, batch))
        step = jax.vmap(step)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    for _ in range(5):
        state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    time.sleep(max(0.0, begin_at - time.time()))
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        count += 1
    return count * seeds / (time.perf_counter() - started)


def together(processes: int, seeds: int, seconds: float, preparation: float) -> float:
    """Of all processes, each with a program of so many seeds."""
    command = [sys.executable, __file__, f"--seeds={seeds}", f"--seconds={seconds}"]
    command.append(f"--begin_at={time.time() + preparation}")
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    rates = []
    for process in started:
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a process ended with exit code {process.returncode}")
        rates.append(float(said.splitlines()[-1]))
    return sum(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preparation", type=float, default=25.0, help="seconds until all have surely compiled")
    parser.add_argument("--begin_at", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.begin_at:
        print(steps_a_second(options.seeds, options.seconds, options.begin_at))
        return
    cores = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {"processes": [], "program": []}
    for _ in range(options.rounds):
        rates["processes"].append(together(cores, 1, options.seconds, options.preparation))
        rates["program"].append(together(1, options.seeds, options.seconds, options.preparation))
    ratios = [program / processes for program, processes in zip(rates["program"], rates["processes"], strict=True)]
    found: dict[str, Any] = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    print(
        json.dumps({"cores": cores, "seeds": options.seeds, **found, "ratios": [round(ratio, 2) for ratio in ratios]})
    )


if __name__ == "__main__":
    main()
