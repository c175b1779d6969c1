"""Plans: what a run needs on hardware that need not be here, and how fast it could be.

    from unihetero_jax.config import load
    from unihetero_jax.plan.planner import plan

    found = plan(load("configs/unihetero_7b.py"), "v5p:8x8x4")
    found["fits"], found["step_seconds"], found["bound_by"]

``unihetero plan`` prints and stores what ``plan`` returns. This file needs no JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unihetero_jax.config import Config, MeshConfig
from unihetero_jax.config.tree import names
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.plan.compile_process import Request, ask
from unihetero_jax.plan.hardware import Hardware, parse_topology
from unihetero_jax.plan.search import search_plans
from unihetero_jax.tokenizer.loading import load_tokenizer

# Llama 2's vocabulary and the five markers of a multimodal sequence: planned for until there is a tokenizer.
_DEFAULT_VOCABULARY = 32_005


def plan(
    config: Config,
    topology: str | Hardware,
    *,
    mesh: str | Mapping[str, int] | None = None,
    search: bool = False,
    measure: bool = False,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """Plan a run on hardware that need not be here.

    For TPUs and CPUs the real train step is compiled ahead of time, in a process of its own; for GPUs memory and
    traffic are estimated by formula, and the plan says ``"estimate": True``.

    Args:
      config: the run's configuration.
      topology: the hardware: ``"v5p:8x8x8"``, ``"v5p:8x8x8,slices=2"``, ``"gpu:h100x64"`` or ``"cpu:8"``.
      mesh: sizes of mesh axes, in place of ``config.mesh``: ``{"fsdp": 64, "tensor": 4}`` or ``"fsdp=64,tensor=4"``.
        The axes left out have size 1, but ``fsdp`` takes the remaining devices.
      search: try meshes, remat policies and batch sizes, and return the fastest plan that fits, with all that were
        tried under ``candidates``.
      measure: also run the step on the devices here, and store its time as ``measured_step_seconds``.
      vocabulary: number of token ids; by default the size of the tokenizer, where that is here.

    Returns:
      The plan as ``unihetero plan --out`` stores it. Among its keys: ``fits``, ``hbm_bytes_per_chip``, ``hbm``,
      ``flops_per_step``, ``collectives``, ``step_seconds``, ``bound_by``, ``mfu_bound``,
      ``tokens_per_second``, ``days`` and ``chip_hours``.

    Raises:
      UsageError: the topology or the mesh is wrong, or libtpu or the devices to measure on are missing.
    """
    hardware = parse_topology(topology) if isinstance(topology, str) else topology
    config = config if mesh is None else with_mesh(config, mesh)
    size = vocabulary or vocabulary_size(config)
    by_formula, in_process = hardware.chip.platform == "gpu", hardware.chip.platform != "cpu"
    if measure and in_process:
        # JAX, which takes hold of the accelerators, is imported where they are to be measured.
        from unihetero_jax.plan import step_timing

        step_timing.check_devices(hardware)

    def plans(configs: Sequence[Config], estimate: bool) -> Iterator[dict[str, Any]]:
        mode: Literal["estimate", "compile"] = "estimate" if estimate else "compile"
        return ask([Request(entry.to_dict(), size, hardware, mode) for entry in configs])

    made = search_plans(config, hardware, plans, by_formula) if search else _checked(next(plans([config], by_formula)))
    if measure:
        chosen = planned_config(config, made)
        if in_process:
            made["measured_step_seconds"] = step_timing.median_step_seconds(chosen, size, hardware)
        else:
            # A process of its own has as many fake devices as the plan asks for.
            found = _checked(next(ask([Request(chosen.to_dict(), size, hardware, "measure")])))
            made["measured_step_seconds"] = found["step_seconds"]
    return made


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of the worker.

    Raises:
      UsageError: the answer is an error.
    """
    if "error" in answer:
        raise UsageError(answer["error"])
    return answer


def planned_config(config: Config, plan: Mapping[str, Any]) -> Config:
    """Return a config with the mesh, remat policy and batch size of a plan, which a search may have changed."""
    decoder = dataclasses.replace(config.model.decoder, remat=plan["remat"])
    return dataclasses.replace(
        config,
        mesh=MeshConfig(**plan["mesh"]),
        model=dataclasses.replace(config.model, decoder=decoder),
        train=dataclasses.replace(config.train, batch_size=plan["batch_size"]),
    )


def with_mesh(config: Config, mesh: str | Mapping[str, int]) -> Config:
    """Return a config on another mesh.

    Args:
      config: the run's configuration.
      mesh: sizes of mesh axes; the axes left out have size 1, but ``fsdp`` takes the remaining devices.

    Raises:
      UsageError: an axis is unknown, or its size is no number of devices.
    """
    text = mesh if isinstance(mesh, str) else ",".join(f"{axis}={size}" for axis, size in mesh.items())
    sizes = {"fsdp": -1}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in names(MeshConfig):
            raise UsageError(
                f"--mesh={text}: unknown axis {axis!r}: expected {', '.join(names(MeshConfig))}, as in "
                f"fsdp=64,tensor=4{nearest(axis, names(MeshConfig))}"
            )
        if not size.isdigit() or not 0 < int(size) < 10**6:
            raise UsageError(f"--mesh={text}: {part!r}: expected {axis}=N, a number of devices")
        sizes[axis] = int(size)
    return dataclasses.replace(config, mesh=MeshConfig(**sizes))


def vocabulary_size(config: Config) -> int:
    """Return the size of the run's tokenizer where it is here, else of the dataset to be built, or of Llama 2."""
    paths = [Path(config.data.tokenizer)] if config.data.tokenizer else []
    roots = [config.data.root, config.init.path if config.init.tokenizer else ""]
    paths += [Path(root) / name for root in roots if root for name in ("tokenizer.json", "tokenizer.model")]
    for path in paths:
        if path.expanduser().is_file():
            return load_tokenizer(path.expanduser()).vocabulary_size
    builds_data = config.model.decoder.width < 1024 and not config.data.sources and not config.data.root
    return config.data.smart_watch.vocabulary_size if builds_data else _DEFAULT_VOCABULARY
