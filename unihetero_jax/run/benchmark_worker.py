"""The process that measures the rows of ``unihetero bench --suite``, one after another.

    python -m unihetero_jax.run.benchmark_worker FILE_DESCRIPTOR

``run.benchmark_suite`` starts it and sends (name, arguments) of a function of ``_MEASUREMENTS`` over the connection of
that number; each gets an answer with a ``status``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from unihetero_jax.config import Config
from unihetero_jax.data import open_mixture, packed_batches
from unihetero_jax.data.smart_watch.builder import build
from unihetero_jax.errors import UsageError
from unihetero_jax.model.attention import base as attention
from unihetero_jax.model.build import define
from unihetero_jax.parallel.chips import CHIPS, chip_of
from unihetero_jax.parallel.mesh import make_mesh, sharding
from unihetero_jax.parallel.module_definition import Params
from unihetero_jax.parallel.startup import end_with_parent
from unihetero_jax.plan.estimate import estimate
from unihetero_jax.plan.hardware import Hardware
from unihetero_jax.plan.planner import vocabulary_size
from unihetero_jax.plan.roofline import build_plan
from unihetero_jax.run.benchmark import compile_step_of, input_rate, timed_steps
from unihetero_jax.run.benchmark_rows import Row, Scale, row_config, scale_of, synthetic_rows
from unihetero_jax.train.monitor.telemetry import QUANTILES
from unihetero_jax.train.monitor.utilization import Peak, Work, measured_rate
from unihetero_jax.train.unified import UnifiedLearner

MEASURED, OUT_OF_MEMORY, FAILED = "measured", "out of memory", "failed"
# Share of a device's memory that a plan may fill: formulas leave things out.
_FILLED = 0.9
_INPUT_BATCHES = 20
# Memory inside the chip, of which a kernel asks too much: a smaller batch does not help.
_ON_CHIP = ("shared memory", "memory space vmem", "memory space smem")
_PLANNED = ("step_seconds", "bound_by", "mfu_bound", "hbm_bytes_per_chip", "fits")


class _FilledLearner(UnifiedLearner):
    """Starts from noise that is quick to compile: true initial values can take the compiler longer than the step."""

    def initial_params(self) -> Params:
        """Fill the parameters, in the types that they are stored as, with hashes of their indices below 1/32."""

        def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            index = jnp.zeros(leaf.shape, jnp.uint32)
            for axis in range(len(leaf.shape)):
                index = index * leaf.shape[axis] + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            bits = index * jnp.uint32(0x9E3779B9)
            bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
            return (bits.astype(jnp.int32).astype(jnp.float32) * 2.0**-36).astype(leaf.dtype)

        params: Params = jax.tree.map(fill, jax.eval_shape(super().initial_params))
        return params


def answer(name: str, *arguments: Any) -> dict[str, Any]:
    """Measure something; return what was found, with a ``status``, and a ``note`` where it is not ``measured``."""
    found: dict[str, Any] = {}
    try:
        _MEASUREMENTS[name](found, *arguments)
        return {**found, "status": MEASURED}
    except Exception as error:  # whatever it is, it is a row of the table
        text = str(error)
        line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        note = line if isinstance(error, UsageError) else f"{type(error).__name__}: {line}"
        return {**found, "status": OUT_OF_MEMORY if _is_out_of_memory(error) else FAILED, "note": note}
    finally:
        # The next row needs the memory of this one's arrays, some of which are in circles.
        gc.collect()


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower().replace("_", " ")
    exhausted = isinstance(error, MemoryError) or "resource exhausted" in text or "out of memory" in text
    return exhausted and not any(place in text for place in _ON_CHIP)


def _describe_device(found: dict[str, Any]) -> None:
    """Find the devices, how fast they multiply matrices, and the attention implementations made for them."""
    devices, here = jax.devices(), attention.platform(None)
    scale = scale_of(here)
    config = row_config(Row(next(iter(scale.sizes)), "text", "auto", "dots"), scale, scale.most_rows * len(devices))
    decoder, chip = config.model.decoder, chip_of(devices[0].device_kind)
    found |= {
        "platform": here,
        "kind": devices[0].device_kind,
        "devices": len(devices),
        "memory_limit_bytes": _memory_limit(),
        "dtype": decoder.dtype,
        "peak_flops": chip and chip[1].flops,
        "matmul_flops": measured_rate(devices, jnp.dtype(decoder.dtype)),
        "attention": attention.native(
            make_mesh(config.mesh), config.data.seq_len, decoder.head_dim, jnp.dtype(decoder.dtype)
        ),
        "jax": jax.__version__,
    }


def _memory_limit() -> int | None:
    limits = [
        stats["bytes_limit"] for device in jax.devices() if "bytes_limit" in (stats := device.memory_stats() or {})
    ]
    return min(limits, default=None)


def _measure_input(found: dict[str, Any], row: Row, folder: Path) -> None:
    """Measure the samples/s of the input pipeline alone, on Smart Watch images of the rows' size.

    Args:
      found: gets what is found.
      row: whose rows are packed.
      folder: a new folder for the dataset.
    """
    scale = scale_of(attention.platform(None))
    config = row_config(row, scale, scale.most_rows * jax.device_count())
    size = config.data.image_size
    found |= {"image_size": size, "batch_size": config.train.batch_size, "cores": len(os.sched_getaffinity(0))}
    with contextlib.redirect_stdout(sys.stderr):
        build(folder, num_images=scale.input_images, test_images=1, image_size=size, questions="all")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(folder)))
    with contextlib.closing(iter(packed_batches(open_mixture(config), config))) as stream:
        # Those that were made ahead while nothing was asked for are not timed.
        input_rate(stream, 2)
        found["samples_per_second"] = input_rate(stream, _INPUT_BATCHES)


def _measure_row(found: dict[str, Any], row: Row, rows: int | None, steps: int, matmul_flops: float) -> None:
    """Measure a train step on a synthetic batch.

    Args:
      found: gets what is found, as far as the row comes.
      row: what is measured.
      rows: packed rows per device; None: as many as fit by the plan.
      steps: number of steps to time.
      matmul_flops: FLOP/s of matrix products on one device, for MFU.
    """
    scale, count = scale_of(attention.platform(None)), jax.device_count()
    rows = rows or _fitting_rows(row, scale)
    config = row_config(row, scale, rows * count)
    found |= {"rows_per_device": rows, "batch_size": config.train.batch_size, "seq_len": config.data.seq_len}
    found["plan"] = _plan(config)
    vocabulary, mesh = vocabulary_size(config), make_mesh(config.mesh)
    learner = _FilledLearner(config, define(config, vocabulary))
    learner.check(mesh)
    shapes = learner.model.shapes()
    for name, tree in (("parameters", shapes), ("decoder_parameters", shapes["decoder"])):
        found[name] = sum(leaf.size for leaf in jax.tree.leaves(tree))
    batch = jax.device_put(synthetic_rows(config, vocabulary), sharding(mesh, "batch"))
    state, compiled, found["compile_seconds"] = compile_step_of(learner, mesh, batch)
    found["memory_bytes"] = _program_bytes(compiled)
    work = Work(learner.work(), count, Peak(matmul_flops, "measured"))
    _, timed = timed_steps(compiled, state, lambda: (batch, 0.0), steps, work)
    seconds = {part: timed.window[part] for part in QUANTILES}
    found |= {
        "step_seconds": seconds,
        "samples_per_second": timed.samples / steps / seconds["p50"],
        "tokens_per_second_per_device": timed.tokens / steps / seconds["p50"] / count,
        "flops_per_step": work.flops,
        "mfu_of_matmul": work.utilization(seconds["p50"]),
    }


def _fitting_rows(row: Row, scale: Scale) -> int:
    """Return the most rows per device whose plan fits; the most of all where there is no plan."""
    rows = scale.most_rows
    while rows > 1 and (plan := _plan(row_config(row, scale, rows * jax.device_count()))) is not None:
        limit = _memory_limit() or plan["hbm_limit_bytes"]
        if plan["hbm_bytes_per_chip"] <= _FILLED * limit:
            break
        rows //= 2
    return rows


def _plan(config: Config) -> dict[str, Any] | None:
    """Return what the formulas of ``unihetero plan`` predict; None for devices without published numbers."""
    devices, here = jax.devices(), attention.platform(None)
    chip = chip_of(devices[0].device_kind) or ((here, CHIPS[here]) if here in CHIPS else None)
    if chip is None:
        return None
    hardware = Hardware(f"{here}:{chip[0]}x{len(devices)}", chip[0], len(devices))
    vocabulary = vocabulary_size(config)
    plan = build_plan(config, vocabulary, hardware, estimate(config, vocabulary, hardware))
    return {name: plan[name] for name in (*_PLANNED, "hbm_limit_bytes")}


def _program_bytes(compiled: Any) -> int | None:
    """Return the bytes of a program on each device: state, batch, temporaries; None where the compiler keeps none.

    The allocator's own peak never goes down while a process lives, and would be that of an earlier row.
    """
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return int(kept + sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes)


_MEASUREMENTS: dict[str, Callable[..., None]] = {
    "device": _describe_device,
    "input": _measure_input,
    "row": _measure_row,
}


def main() -> int:
    """Answer requests until the connection ends; end with the process that started this one."""
    end_with_parent(lambda: os._exit(1))
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError):
        while True:
            connection.send(answer(*connection.recv()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
