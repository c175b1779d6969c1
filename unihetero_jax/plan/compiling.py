"""The real train step, compiled for devices that may not be here; runs in a process of its own.

    python -m unihetero_jax.plan.compiling REQUESTS.json

REQUESTS.json is a list of ``Request``; each answer is a JSON object on a line of stdout behind ``MARK``, with ``error``
where config, mesh or topology are wrong. The process is apart so that its choice of platform, its memory and the
compiler's own messages stay out of the caller's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.startup import end_with_parent
from unihetero_jax.plan.hardware import Hardware

# The compiled step's name, as ``train.step`` gives it.
_STEP = "jit_with_precision"
# In front of each answer: libtpu writes lines of its own.
MARK = "unihetero-plan: "
MISSING = "libtpu, which compiles for TPUs, is not installed: pip install 'unihetero_jax[plan]'"


@dataclass(frozen=True)
class Request:
    """What to compile: a config as nested dicts, its vocabulary, the hardware. ``estimate``: by formula alone.

    ``measure``: run it instead, on devices of this process. ``dumped``: the folder that the process's environment has
    the compiler leave its programs in.
    """

    config: dict[str, Any]
    vocabulary: int
    hardware: Hardware
    estimate: bool = False
    measure: bool = False
    dumped: str = ""


def environment(hardware: Hardware, dumped: Path) -> dict[str, str]:
    """Variables of the process that compiles: JAX on the CPU, one fake device a chip where chips are CPUs.

    Args:
      hardware: to compile for.
      dumped: folder where the compiler leaves its programs.
    """
    # Without the first, libtpu asks the metadata server of a cloud machine who it is, and waits for the answer; without
    # the second, two plans at a time refuse each other.
    made = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    count = hardware.chips if hardware.chip.platform != "tpu" else 1
    others = [flag for flag in made.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    dump = [f"--xla_dump_to={dumped}", "--xla_dump_hlo_as_text=true", f"--xla_dump_hlo_module_re={_STEP}"]
    made["XLA_FLAGS"] = " ".join([*others, *dump, f"--xla_force_host_platform_device_count={count}"])
    return made


def program_text(folder: Path) -> str:
    """The optimised program of the step that was compiled last.

    It is read from the compiler's dump: ``as_text`` of a program for TPUs fails where a copy has several operands.
    """
    ends = ("after_optimizations.txt", "after_optimizations_before_buffer_assignment.txt")
    found = [path for end in ends for path in folder.glob(f"*{end}")]
    if not found:
        raise RuntimeError(f"{folder}: the compiler left no program there")
    text = max(found, key=lambda path: path.stat().st_mtime_ns).read_text(encoding="utf-8", errors="replace")
    for path in folder.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    return text


def devices(hardware: Hardware) -> Any:
    """The devices to compile for.

    Raises:
      UsageError: libtpu is missing, or there is no such topology.
    """
    import importlib.util

    import jax

    if hardware.chip.platform != "tpu":
        return jax.devices("cpu")[: hardware.chips]
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(MISSING)
    from jax.experimental import topologies

    name = f"{hardware.kind}:{hardware.shape}"
    # A torus that is described without its links around compiles to other collectives: over three dimensions the
    # compiler then has no all-gather, and sums arrays of zeros instead.
    described: dict[str, Any] = {"wrap": hardware.wrap}
    if hardware.slices > 1:
        described["num_slices"] = hardware.slices
    if hardware.kind == "v4":
        # Two cores that the runtime drives as one device.
        described["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **described).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--topology={hardware.name}: libtpu knows no such topology: {reason}") from error


def batch_shapes(config: Any, where: Any) -> dict[str, Any]:
    """The arrays of a packed batch, as shapes.

    Args:
      config: of the run.
      where: the batch's sharding.
    """
    import jax
    import jax.numpy as jnp

    from unihetero_jax.config import cached_towers, reads_pixels
    from unihetero_jax.data.opening import row_shape
    from unihetero_jax.data.records.invalid import SKIP_REASONS

    rows, row = config.train.batch_size, row_shape(config, None, reads_pixels(config))

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=where)

    batch = {name: array((row.slots,), jnp.int32) for name in ("tokens", "segment", "position", "image", "patch")}
    batch |= {name: array((row.slots,), jnp.float32) for name in ("text_weight", "visual_weight")}
    batch |= {
        "role": array((row.images,), jnp.int8),
        "skipped": array((len(SKIP_REASONS),), jnp.int32),
    }
    if row.pixels:
        batch["images"] = array((row.images, row.image_size, row.image_size, 3), jnp.uint8)
    for name, section in cached_towers(config).items():
        key = f"config.model.{name}"
        shape = (row.images, section.tokens(row.image_size, key), section.stored_features)
        batch[f"{name}_features"] = array(shape, jnp.float16)
    return batch


def lower(config: Any, vocabulary: int, mesh: Any) -> tuple[Any, Any]:
    """The train step, traced with shapes alone, and the shapes of its state with their places.

    Raises:
      UsageError: the mesh does not divide what it has to.
    """
    import jax

    from unihetero_jax.model.build import define
    from unihetero_jax.parallel.mesh import check_sharded, sharding
    from unihetero_jax.train.state import state_shardings
    from unihetero_jax.train.step import compile_step, make_step
    from unihetero_jax.train.unified import UnifiedLearner

    learner = UnifiedLearner(config, define(config, vocabulary))
    learner.check(mesh)
    optimizer = learner.optimizer()
    shapes, places = state_shardings(learner, optimizer, mesh)
    check_sharded(shapes["params"], places["params"])
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )
    step = compile_step(make_step(learner, optimizer, mesh), places, mesh)
    return step.lower(state, batch_shapes(config, sharding(mesh, "batch"))), state


def bytes_a_chip(tree: Any) -> int:
    """Bytes of one device's shards of shapes that have their places."""
    import math

    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "sharding")
    )


def answer(request: Request) -> dict[str, Any]:
    """What compiling for a request found.

    Raises:
      UsageError: the config, the mesh or the topology is wrong.
    """
    from unihetero_jax import config as configs
    from unihetero_jax.model.attention.base import chosen
    from unihetero_jax.parallel import hlo as program
    from unihetero_jax.parallel.compiler_flags import compiler_options
    from unihetero_jax.parallel.mesh import make_mesh
    from unihetero_jax.plan import estimate, measure

    config = configs.resolve(request.config)
    if request.measure:
        return {"step_seconds": measure.measured_seconds(config, request.vocabulary, request.hardware)}
    if request.estimate:
        return estimate.answer(config, request.vocabulary, request.hardware)
    mesh = make_mesh(config.mesh, devices(request.hardware))
    started = time.perf_counter()
    lowered, state = lower(config, request.vocabulary, mesh)
    traced = time.perf_counter() - started
    found: dict[str, Any] = {
        "mesh": dict(mesh.shape),
        "parameter_bytes": bytes_a_chip(state["params"]),
        "optimizer_bytes": bytes_a_chip((state["opt_state"], state["ema"])),
        "trace_seconds": traced,
        "attention": chosen(config, mesh),
        "least_fsdp_bytes": estimate.least_along_fsdp(config, request.vocabulary, mesh),
        "compiler_flags": compiler_options(mesh.devices.ravel().tolist()),
    }
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found |= {"needed_bytes": _needed(str(error)), "oom": str(error).splitlines()[0]}
        compiled = None
    found |= _costs(started)
    # A program that does not fit is left behind, too: what it would send tells why.
    module = program.parse(program_text(Path(request.dumped)))
    columns, tensor = (request.vocabulary, configs.table_rows(request.vocabulary)), mesh.shape["tensor"]
    once, whole = program.matrix_flops(module, once=True), program.matrix_flops(module)
    found |= {
        "program_flops_once": once,
        "program_flops": whole,
        "collectives": [dataclasses.asdict(entry) for entry in program.collectives(module, mesh.shape)],
        "kernels": [dataclasses.asdict(entry) for entry in program.kernels(module)],
        "vocabulary_rows": program.most_rows(module, *(size // parts for size in columns for parts in (1, tensor))),
    }
    if compiled is None:
        return found
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    # What XLA counted, with each loop's body as often as it runs.
    ratio = whole / once if once else 1.0
    return found | {
        "batch_bytes": memory.argument_size_in_bytes - found["parameter_bytes"] - found["optimizer_bytes"],
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        "xla_flops_once": cost.get("flops", 0.0),
        "xla_flops": cost.get("flops", 0.0) + whole - once,
        "hbm_traffic_bytes": cost.get("bytes accessed", 0.0) * ratio,
    }


def _costs(started: float) -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "compile_seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_host_bytes": usage.ru_maxrss * 1024,
    }


def _needed(message: str) -> float:
    """Bytes that the compiler says a program would need; 0 where it does not say."""
    units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
    found = re.search(r"(?:total memory required[^(]*|Used )\(?([\d.]+)([KMGT])", message)
    return float(found[1]) * units[found[2]] if found else 0.0


def main() -> int:
    """Reads the requests; prints an answer a line, each as it is found. Ends with the process that started it."""
    end_with_parent(lambda: os._exit(1))
    for values in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            found = answer(Request(**{**values, "hardware": Hardware(**values["hardware"])}))
        except UsageError as error:
            found = {"error": str(error)}
        print(MARK + json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
