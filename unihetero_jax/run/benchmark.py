"""Throughput of the input pipeline alone, of the step on one synthetic batch, and of both together.

They are measured together because each explains the others: a step that is slower on real data waits for the input, and
an input pipeline that is fast alone may be slow beside a step that needs the same cores.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from unihetero_jax.config import Config
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.data.pipeline import batches, built_root, open_mixture, open_tokenizer
from unihetero_jax.errors import UsageError
from unihetero_jax.files import write_atomic
from unihetero_jax.model.build import define
from unihetero_jax.model.flops import FORMULA
from unihetero_jax.model.stored_features import open_features
from unihetero_jax.parallel import processes
from unihetero_jax.parallel.mesh import make_mesh, sharding
from unihetero_jax.parallel.startup import set_up_logging
from unihetero_jax.run.workdir import absolute_paths
from unihetero_jax.train.monitor.telemetry import QUANTILES, Throughput, format_quantiles
from unihetero_jax.train.monitor.utilization import Work, log_work, measure_work, memory_bytes
from unihetero_jax.train.state import initial_state, state_shardings
from unihetero_jax.train.step import compile_step, make_step
from unihetero_jax.train.unified import UnifiedLearner

Draw = Callable[[], tuple[dict[str, jax.Array], float]]

# Steps before the timed ones.
_WARM_UP_STEPS = 2


def bench(config: Config, steps: int = 20, out: Path | None = None) -> dict[str, Any]:
    """Measure a config on the devices that are here; print the result and store it.

    Weights are random. With several processes, as for training, all of them measure at the same time.

    Args:
      config: the run's configuration.
      steps: number of steps to time of each kind.
      out: the JSON file that gets the result.

    Returns:
      The result, as the JSON file stores it.

    Raises:
      UsageError: there is no dataset, the mesh does not fit, ``steps`` is not positive, or a process is missing.
    """
    if steps < 1:
        raise UsageError(f"--steps={steps}: expected 1 or more")
    set_up_logging()
    try:
        processes.start()
    except processes.HostMissing as error:
        raise UsageError(str(error)) from error
    found = measure(absolute_paths(config), steps)
    if processes.is_first():
        print(format_result(found))
        if out is not None:
            write_atomic(out, json.dumps(found, indent=2) + "\n")
    return found


def measure(config: Config, steps: int) -> dict[str, Any]:
    """The result of ``bench``, without printing it."""
    root = built_root(config)
    features = open_features(config, root)
    samples = open_mixture(config, root, "train", config.train.seed, features)
    tokenizer = open_tokenizer(config, root)
    mesh = make_mesh(config.mesh)
    learner = UnifiedLearner(config, define(config, tokenizer.vocabulary_size))
    learner.check(mesh)
    rows_of, size = sharding(mesh, "batch"), config.train.batch_size
    rows = processes.rows_here(rows_of, size)

    def place(local: PackedBatch) -> dict[str, jax.Array]:
        return {name: processes.place_rows(array, rows, size, rows_of) for name, array in local.items()}

    stream = batches(config, samples, tokenizer, rows, size, None, features)
    try:
        first, _ = next(stream)
        processes.barrier("input")
        rate = input_rate((batch for batch, _ in stream), steps)
        by_host = [float(text) for text in processes.gather("input rates", repr(rate))]
        synthetic = place(synthetic_batch(first, tokenizer.vocabulary_size))
        state, compiled, compile_seconds = compile_step_of(learner, mesh, synthetic)
        work = measure_work(learner.work(), list(mesh.devices.flat), config.logging.peak_flops, learner.precise)
        assert work is not None, "the unified model's FLOPs are counted"
        if processes.is_first():
            log_work(work, compiled)
        processes.barrier("compiled")

        def draw() -> tuple[dict[str, jax.Array], float]:
            began = time.perf_counter()
            local, _ = next(stream)
            waited = time.perf_counter() - began
            return place(local), waited

        counted: dict[str, Throughput] = {}
        for name, source in (("synthetic", lambda: (synthetic, 0.0)), ("real", draw)):
            state, counted[name] = timed_steps(compiled, state, source, steps, work)
    finally:
        stream.close()
    return {
        "devices": mesh.devices.size,
        "device_kind": mesh.devices.flat[0].device_kind,
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "batch_size": size,
        "slots": config.data.seq_len,
        "steps": steps,
        "compile_seconds": compile_seconds,
        "input_samples_per_second_per_host": min(by_host),
        "input_samples_per_second_by_host": by_host,
        **_throughput_entries(counted, work),
        **memory_bytes(),
    }


def compile_step_of(learner: UnifiedLearner, mesh: Mesh, batch: dict[str, jax.Array]) -> tuple[Any, Any, float]:
    """The initial state, the compiled step, and the seconds that compiling took."""
    optimizer = learner.optimizer()
    _, places = state_shardings(learner, optimizer, mesh)
    state = jax.jit(lambda: initial_state(learner, optimizer), out_shardings=places)()
    started = time.perf_counter()
    compiled = compile_step(make_step(learner, optimizer, mesh), places, mesh).lower(state, batch).compile()
    return state, compiled, time.perf_counter() - started


def _throughput_entries(counted: Mapping[str, Throughput], work: Work) -> dict[str, Any]:
    found: dict[str, Any] = {
        "flops_per_step": work.flops,
        "flops_formula": FORMULA,
        "peak_flops_per_device": work.peak.flops,
        "peak_source": work.peak.source,
    }
    for name, throughput in counted.items():
        samples_per_second, tokens_per_second, waiting = throughput.rates()
        found[f"{name}_step_seconds"] = {part: throughput.window[part] for part in QUANTILES}
        found[f"{name}_samples_per_second"] = samples_per_second
        found[f"{name}_tokens_per_second_per_device"] = tokens_per_second / work.devices
        found[f"{name}_mfu"], found[f"{name}_data_wait"] = throughput.mfu, waiting
    return found


def input_rate(stream: Iterator[PackedBatch], count: int) -> float:
    """Samples per second over some batches, with nothing else running."""
    samples, started = 0, time.perf_counter()
    for _ in range(count):
        batch = next(stream)
        samples += int(batch["segment"].max(axis=1).sum())
    return samples / (time.perf_counter() - started)


def synthetic_batch(like: PackedBatch, vocabulary: int) -> PackedBatch:
    """A batch with the layout of another one, with random tokens and, where it has images, random pixels."""
    draws = np.random.default_rng(0)
    most = {"tokens": vocabulary, "images": 256}
    drawn = {
        name: draws.integers(0, end, like[name].shape, like[name].dtype) for name, end in most.items() if name in like
    }
    return {**like, **drawn}


def timed_steps(compiled: Any, state: Any, draw: Draw, steps: int, work: Work) -> tuple[Any, Throughput]:
    """Time steps, after a few that warm up.

    Args:
      compiled: the compiled step.
      state: the state to start from; its buffers are donated.
      draw: returns a batch, and the seconds that it was waited for.
      steps: number of steps.
      work: FLOPs of a step, and peak FLOP/s of the devices.

    Returns:
      The last state, and the measured throughput.
    """
    state, _ = _steps(compiled, state, draw, _WARM_UP_STEPS, work)
    return _steps(compiled, state, draw, steps, work)


def _steps(compiled: Any, state: Any, draw: Draw, steps: int, work: Work) -> tuple[Any, Throughput]:
    """Make steps in the order of the training loop: launch one, read the previous one's metrics, draw a batch."""
    (batch, _), waited = draw(), 0.0
    counted = Throughput(steps, steps, work, work.devices)

    def read(step: int, metrics: dict[str, jax.Array], waited: float) -> None:
        counted.step(step, waited, float(metrics["samples"]), float(metrics["tokens"]))

    unread: tuple[int, dict[str, jax.Array], float] | None = None
    for step in range(1, steps + 1):
        state, metrics = compiled(state, batch)
        if unread is not None:
            read(*unread)
        unread = (step, metrics, waited)
        if step < steps:
            batch, waited = draw()
    assert unread is not None
    read(*unread)
    return state, counted


def format_result(found: dict[str, Any]) -> str:
    """The result of ``bench`` as text."""
    memory = ", ".join(
        f"{name.removesuffix('_bytes').replace('_', ' ')} {size / 2**30:.2f} GiB"
        for name, size in found.items()
        if name.endswith("memory_bytes")
    )
    lines = [
        f"{found['devices']} devices ({found['device_kind']}), {found['processes']} processes, batch "
        f"{found['batch_size']} × {found['slots']} slots, {found['steps']} steps of each kind",
        f"input pipeline alone   {found['input_samples_per_second_per_host']:,.0f} samples/s/host (the slowest host)",
    ]
    for name, title in (("synthetic", "step, synthetic data"), ("real", "step, real data")):
        lines.append(
            f"{title:22} {format_quantiles(found[f'{name}_step_seconds'])} s; "
            f"{found[f'{name}_samples_per_second']:,.0f} samples/s, "
            f"{found[f'{name}_tokens_per_second_per_device']:,.0f} tokens/s/device, MFU {found[f'{name}_mfu']:.1%}"
        )
    lines[-1] += f", data wait {found['real_data_wait']:.1%}"
    return "\n".join([*lines, f"memory                 {memory}, compiled in {found['compile_seconds']:.1f} s"])
