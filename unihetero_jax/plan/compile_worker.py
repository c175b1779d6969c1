"""The process that compiles the real train step for devices that need not be here.

    python -m unihetero_jax.plan.compile_worker REQUESTS.json PROGRAMS

``plan.compile_process`` starts it. REQUESTS.json is a list of requests; each answer is a JSON object on a line of
stdout, with ``error`` where the config, the mesh or the topology is wrong. PROGRAMS is the folder where the environment
has the compiler leave its programs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from unihetero_jax.config import Config, resolve, table_rows
from unihetero_jax.errors import UsageError
from unihetero_jax.model.attention.base import chosen
from unihetero_jax.parallel import hlo
from unihetero_jax.parallel.compiler_flags import compiler_options
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.parallel.startup import end_with_parent
from unihetero_jax.plan.compile_process import ANSWER, Request
from unihetero_jax.plan.estimate import estimate, least_fsdp_bytes
from unihetero_jax.plan.hardware import Hardware
from unihetero_jax.plan.lowering import bytes_per_chip, lower
from unihetero_jax.plan.roofline import build_plan
from unihetero_jax.plan.step_timing import median_step_seconds

_NO_LIBTPU = "libtpu, which compiles for TPUs, is not installed: pip install 'unihetero_jax[plan]'"


def answer(request: Request, programs: Path) -> dict[str, Any]:
    """Answer one request: with a plan, or with the measured ``step_seconds``.

    Args:
      request: the request.
      programs: folder where the compiler leaves its programs.

    Raises:
      UsageError: the config, the mesh or the topology is wrong.
    """
    config = resolve(request.config)
    if request.mode == "measure":
        return {"step_seconds": median_step_seconds(config, request.vocabulary, request.hardware)}
    if request.mode == "estimate":
        found = estimate(config, request.vocabulary, request.hardware)
    else:
        mesh = make_mesh(config.mesh, _devices(request.hardware))
        found = _compile(config, request.vocabulary, mesh, programs)
    return build_plan(config, request.vocabulary, request.hardware, found)


def _devices(hardware: Hardware) -> Any:
    """Return the devices to compile for.

    Raises:
      UsageError: libtpu is missing, or it knows no such topology.
    """
    if hardware.chip.platform != "tpu":
        return jax.devices("cpu")[: hardware.chips]
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(_NO_LIBTPU)
    # Without the links that close the torus the compiler chooses other collectives: over three dimensions it then has
    # no all-gather, and sums arrays of zeros instead.
    options: dict[str, Any] = {"wrap": hardware.wrap}
    if hardware.slices > 1:
        options["num_slices"] = hardware.slices
    if hardware.kind == "v4":
        # The runtime drives a chip's two cores as one device.
        options["chip_config_name"] = "megacore"
    name = f"{hardware.kind}:{hardware.shape}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--topology={hardware.name}: libtpu knows no such topology: {reason}") from error


def _compile(config: Config, vocabulary: int, mesh: Mesh, programs: Path) -> dict[str, Any]:
    lowered, state = lower(config, vocabulary, mesh)
    found: dict[str, Any] = {
        "mesh": dict(mesh.shape),
        "parameter_bytes": bytes_per_chip(state.shapes["params"]),
        "optimizer_bytes": bytes_per_chip((state.shapes["opt_state"], state.shapes["ema"])),
        "attention": chosen(config, mesh),
        "least_fsdp_bytes": least_fsdp_bytes(config, vocabulary, mesh),
        "compiler_flags": compiler_options(mesh.devices.ravel().tolist()),
    }
    started, compiled = time.perf_counter(), None
    try:
        compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found |= {"needed_bytes": _needed_bytes(str(error)), "oom": str(error).splitlines()[0]}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found |= {
        "compile_seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_host_bytes": usage.ru_maxrss * 1024,
    }
    # The compiler leaves its program even when that does not fit: its collectives show why.
    found |= _program_contents(hlo.parse(_program_text(programs)), vocabulary, mesh)
    return found if compiled is None else found | _compiled_costs(compiled, found)


def _program_text(programs: Path) -> str:
    """Return the optimized program of the step that was compiled last, and empty the folder.

    It comes from the compiler's dump, because ``as_text`` of a TPU program fails where a copy has several operands.
    """
    ends = ("after_optimizations.txt", "after_optimizations_before_buffer_assignment.txt")
    found = [path for end in ends for path in programs.glob(f"*{end}")]
    if not found:
        raise RuntimeError(f"{programs}: the compiler left no program there")
    text = max(found, key=lambda path: path.stat().st_mtime_ns).read_text(encoding="utf-8", errors="replace")
    shutil.rmtree(programs)
    programs.mkdir()
    return text


def _program_contents(module: hlo.Module, vocabulary: int, mesh: Mesh) -> dict[str, Any]:
    columns, tensor = (vocabulary, table_rows(vocabulary)), mesh.shape["tensor"]
    return {
        "program_flops_once": hlo.matrix_flops(module, once=True),
        "program_flops": hlo.matrix_flops(module),
        "collectives": [dataclasses.asdict(entry) for entry in hlo.collectives(module, mesh.shape)],
        "kernels": [dataclasses.asdict(entry) for entry in hlo.kernels(module)],
        "vocabulary_rows": hlo.most_rows(module, *(size // parts for size in columns for parts in (1, tensor))),
    }


def _compiled_costs(compiled: Any, found: dict[str, Any]) -> dict[str, Any]:
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    once, whole = found["program_flops_once"], found["program_flops"]
    # XLA counts a loop's body once; the bytes of the whole program are taken to grow as its FLOPs do.
    ratio = whole / once if once else 1.0
    return {
        "batch_bytes": memory.argument_size_in_bytes - found["parameter_bytes"] - found["optimizer_bytes"],
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        "xla_flops_once": cost.get("flops", 0.0),
        "xla_flops": cost.get("flops", 0.0) + whole - once,
        "hbm_traffic_bytes": cost.get("bytes accessed", 0.0) * ratio,
    }


def _needed_bytes(message: str) -> float:
    """Return the bytes that a program needs according to the compiler's message; 0 where it gives none."""
    units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
    found = re.search(r"(?:total memory required[^(]*|Used )\(?([\d.]+)([KMGT])", message)
    return float(found[1]) * units[found[2]] if found else 0.0


def main() -> int:
    """Read the requests and print each answer when it is ready; end with the process that started this one."""
    end_with_parent(lambda: os._exit(1))
    requests, programs = (Path(argument) for argument in sys.argv[1:])
    for values in json.loads(requests.read_text(encoding="utf-8")):
        try:
            found = answer(Request(**{**values, "hardware": Hardware(**values["hardware"])}), programs)
        except UsageError as error:
            found = {"error": str(error)}
        print(ANSWER + json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
