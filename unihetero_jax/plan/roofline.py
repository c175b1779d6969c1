"""From what a step does to how long it takes: the slowest of arithmetic, memory and links, each at its published rate.

A bound, not a forecast: everything is taken to overlap, and nothing to be waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unihetero_jax.config import Config, visual_tokens
from unihetero_jax.model import flops
from unihetero_jax.plan import estimate
from unihetero_jax.plan.fingerprint import digest, planned
from unihetero_jax.plan.hardware import Hardware

# Of a sample beside its image, as in captions of a sentence or two.
TEXT_TOKENS = 64
_DAY = 86_400


@dataclass(frozen=True)
class Resource:
    """One of what a step needs, and how long it is busy."""

    name: str
    seconds: float


def resources(
    hardware: Hardware, executed: float, memory_bytes: float, collectives: Sequence[dict[str, Any]]
) -> list[Resource]:
    """Seconds of each resource a step, the slowest first.

    Args:
      hardware: what runs it.
      executed: FLOPs of the whole step.
      memory_bytes: through one chip's memory.
      collectives: of one chip, with ``axis`` and ``bytes``.
    """
    chip = hardware.chip
    far = [entry["bytes"] for entry in collectives if "slice" in entry["axis"].split("+")]
    near = [entry["bytes"] for entry in collectives if "slice" not in entry["axis"].split("+")]
    network = sum(far)
    if chip.platform == "gpu" and hardware.chips > chip.host:
        # What every chip of a host needs comes to the host once, over all its ports together.
        network += sum(near) / chip.host
    found = [
        Resource("compute", executed / hardware.chips / chip.flops),
        Resource("memory", memory_bytes / chip.hbm_rate),
        Resource("links", sum(near) / chip.link_rate),
        Resource("network", network / chip.network_rate),
    ]
    return sorted(found, key=lambda entry: -entry.seconds)


def report(
    config: Config, vocabulary: int, hardware: Hardware, found: dict[str, Any], text_tokens: int = TEXT_TOKENS
) -> dict[str, Any]:
    """A plan: everything that is printed, and written to ``--out``.

    Args:
      config: of the run.
      vocabulary: token ids.
      hardware: what it is for.
      found: the answer of ``plan.compiling`` or ``plan.estimate``.
      text_tokens: of a sample, beside its image.
    """
    parts = flops.step_parts(config, vocabulary, found["attention"], found["mesh"]["context"])
    needed, executed = (sum(getattr(part, name) for part in parts) for name in ("model", "executed"))
    in_kernels = sum(part.executed for part in parts if part.kernel)
    chip, chips = hardware.chip, hardware.chips
    held = ("parameter_bytes", "optimizer_bytes", "batch_bytes", "temporary_bytes", "output_bytes", "program_bytes")
    hbm = {name: max(found.get(name, 0), 0) for name in held}
    total = sum(hbm.values()) or 0
    if "needed_bytes" in found:
        total += found["needed_bytes"]
    plan: dict[str, Any] = {
        "topology": hardware.name,
        "config": planned(config),
        "config_digest": digest(config),
        "chips": chips,
        "hosts": hardware.hosts,
        "mesh": found["mesh"],
        "remat": config.model.decoder.remat,
        "batch_size": config.train.batch_size,
        "vocabulary": vocabulary,
        "estimate": bool(found.get("estimate")),
        "hbm_bytes_per_chip": total,
        "hbm_limit_bytes": chip.hbm_bytes,
        "hbm": hbm,
        "fits": "oom" not in found and total <= chip.hbm_bytes,
        "spare": 1 - total / chip.hbm_bytes,
        "flops_per_step": needed,
        "flops_executed": executed,
        "flops_formula": flops.FORMULA,
        "flops_parts": {part.name: part.model for part in parts},
        "attention": found["attention"],
        "kernels": found.get("kernels", []),
        "compile_seconds": found["compile_seconds"],
        "cpu_seconds": found.get("cpu_seconds", 0.0),
        "peak_host_bytes": found.get("peak_host_bytes", 0),
        "collectives": found.get("collectives", []),
        "compiler_flags": found.get("compiler_flags", {}),
        "hbm_traffic_bytes": found.get("hbm_traffic_bytes", 0.0),
    }
    if "xla_flops" in found:
        plan["flops_xla"] = found["xla_flops"] * chips
        plan["flops_xla_loops_once"] = found["xla_flops_once"] * chips
        # Over the same work: XLA counts nothing inside kernels.
        compared = executed - in_kernels
        plan["flops_agreement"] = compared / plan["flops_xla"] - 1 if plan["flops_xla"] else None
        plan["flops_in_kernels"] = in_kernels
    if (least := found.get("least_fsdp_bytes")) and any(least.values()):
        sent = sum(entry["bytes"] for entry in plan["collectives"] if entry["axis"] == "fsdp")
        plan["links"] = {"fsdp_bytes": sent, "least_fsdp_bytes": least} | {
            f"ratio_{name}": sent / size for name, size in least.items()
        }
    if "vocabulary_rows" in found:
        # Logits of more slots than that, beyond what tables have rows, are those of other chips.
        most = max(estimate.logit_rows(config, plan["mesh"]), config.model.decoder.width)
        plan["vocabulary_rows"] = found["vocabulary_rows"]
        plan["logits_replicated"] = found["vocabulary_rows"] > most
    work = plan["flops_xla"] + in_kernels if plan.get("flops_xla") else executed
    busy = resources(hardware, work, plan["hbm_traffic_bytes"], plan["collectives"])
    seconds = busy[0].seconds
    slots = config.train.batch_size * config.data.slots
    each = visual_tokens(config)[1] + text_tokens
    samples = config.train.batch_size * min(config.data.images_per_row, config.data.slots / each)
    days = config.train.steps * seconds / _DAY
    return plan | {
        "seconds": {entry.name: entry.seconds for entry in busy},
        "step_seconds": seconds,
        "bound_by": busy[0].name,
        "mfu_bound": needed / seconds / chips / chip.flops,
        "tokens_per_second": slots / seconds,
        "samples_per_second": samples / seconds,
        "images_per_second_per_host": samples / seconds / hardware.hosts,
        "steps": config.train.steps,
        "days": days,
        "chip_hours": days * 24 * chips,
    }
