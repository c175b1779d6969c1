"""From what a step does to how long it takes: the slowest of arithmetic, memory and links, each at its published rate.

This is a bound, not a forecast: everything is assumed to overlap, and nothing to wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unihetero_jax.config import Config, visual_tokens
from unihetero_jax.model import flops
from unihetero_jax.plan.fingerprint import digest, shaping_values
from unihetero_jax.plan.hardware import Hardware

# Text tokens of a sample beside its image, as in captions of a sentence or two.
TEXT_TOKENS = 64
_SECONDS_PER_DAY = 86_400
# Copied into the plan as found; the values of an estimate, which does not find them.
_COPIED: dict[str, Any] = {
    "kernels": [],
    "compile_seconds": 0.0,
    "cpu_seconds": 0.0,
    "peak_host_bytes": 0,
    "collectives": [],
}
_COPIED |= {"compiler_flags": {}, "hbm_traffic_bytes": 0.0}
_MEMORY = ("parameter_bytes", "optimizer_bytes", "batch_bytes", "temporary_bytes", "output_bytes", "program_bytes")


def resource_seconds(
    hardware: Hardware, executed: float, memory_bytes: float, collectives: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the seconds per step that each resource is busy, the slowest first.

    Args:
      hardware: the hardware that runs the step.
      executed: FLOPs of the whole step.
      memory_bytes: bytes through one chip's memory.
      collectives: collectives of one chip, with ``axis`` and ``bytes``.
    """
    chip = hardware.chip
    network = sum(entry["bytes"] for entry in collectives if "slice" in entry["axis"].split("+"))
    links = sum(entry["bytes"] for entry in collectives if "slice" not in entry["axis"].split("+"))
    if chip.platform == "gpu" and hardware.chips > chip.host:
        # What every chip of a host needs comes to the host once, over all its ports together.
        network += links / chip.host
    seconds = {
        "compute": executed / hardware.chips / chip.flops,
        "memory": memory_bytes / chip.hbm_rate,
        "links": links / chip.link_rate,
        "network": network / chip.network_rate,
    }
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def build_plan(config: Config, vocabulary: int, hardware: Hardware, found: Mapping[str, Any]) -> dict[str, Any]:
    """Build the plan as it is stored and printed.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
      hardware: the hardware planned for.
      found: what compiling or estimating the step found.
    """
    parts = flops.step_parts(config, vocabulary, found["attention"], found["mesh"]["context"])
    needed, executed = (sum(getattr(part, name) for part in parts) for name in ("model", "executed"))
    in_kernels = sum(part.executed for part in parts if part.kernel)
    plan: dict[str, Any] = {
        "topology": hardware.name,
        "config": shaping_values(config),
        "config_digest": digest(config),
        "chips": hardware.chips,
        "hosts": hardware.hosts,
        "mesh": found["mesh"],
        "remat": config.model.decoder.remat,
        "batch_size": config.train.batch_size,
        "vocabulary": vocabulary,
        "estimate": bool(found.get("estimate")),
        **_memory(hardware, found),
        "flops_per_step": needed,
        "flops_executed": executed,
        "flops_formula": flops.FORMULA,
        "flops_parts": {part.name: part.model for part in parts},
        "attention": found["attention"],
        **{key: found.get(key, default) for key, default in _COPIED.items()},
        **_checks(config, hardware.chips, found, executed - in_kernels, in_kernels),
    }
    work = plan["flops_xla"] + in_kernels if plan.get("flops_xla") else executed
    return plan | _speed(config, hardware, plan, work)


def _memory(hardware: Hardware, found: Mapping[str, Any]) -> dict[str, Any]:
    hbm = {name: max(found.get(name, 0), 0) for name in _MEMORY}
    total, limit = sum(hbm.values()) + found.get("needed_bytes", 0), hardware.chip.hbm_bytes
    return {
        "hbm_bytes_per_chip": total,
        "hbm_limit_bytes": limit,
        "hbm": hbm,
        "fits": "oom" not in found and total <= limit,
        "spare": 1 - total / limit,
    }


def _checks(
    config: Config, chips: int, found: Mapping[str, Any], outside_kernels: float, in_kernels: float
) -> dict[str, Any]:
    """Compare the compiled program with our FLOP count, the least traffic, and the logits a chip should hold."""
    checks: dict[str, Any] = {}
    if "xla_flops" in found:
        checks["flops_xla"] = found["xla_flops"] * chips
        checks["flops_xla_loops_once"] = found["xla_flops_once"] * chips
        # Compared over the same work: XLA counts nothing inside kernels.
        checks["flops_agreement"] = outside_kernels / checks["flops_xla"] - 1 if checks["flops_xla"] else None
        checks["flops_in_kernels"] = in_kernels
    if (least := found.get("least_fsdp_bytes")) and any(least.values()):
        sent = sum(entry["bytes"] for entry in found.get("collectives", []) if entry["axis"] == "fsdp")
        ratios = {f"ratio_{name}": sent / size for name, size in least.items()}
        checks["links"] = {"fsdp_bytes": sent, "least_fsdp_bytes": least} | ratios
    if "vocabulary_rows" in found:
        # Tables have as many rows as the decoder is wide; logits of more slots than a chip's own are those of others.
        most = max(logit_rows(config, found["mesh"]), config.model.decoder.width)
        checks["vocabulary_rows"] = found["vocabulary_rows"]
        checks["logits_replicated"] = found["vocabulary_rows"] > most
    return checks


def _speed(config: Config, hardware: Hardware, plan: Mapping[str, Any], work: float) -> dict[str, Any]:
    busy = resource_seconds(hardware, work, plan["hbm_traffic_bytes"], plan["collectives"])
    slowest, seconds = next(iter(busy.items()))
    slots = config.train.batch_size * config.data.seq_len
    sample_slots = visual_tokens(config)[1] + TEXT_TOKENS
    samples = config.train.batch_size * min(config.data.images_per_row, config.data.seq_len / sample_slots)
    days = config.train.steps * seconds / _SECONDS_PER_DAY
    return {
        "seconds": busy,
        "step_seconds": seconds,
        "bound_by": slowest,
        "mfu_bound": plan["flops_per_step"] / seconds / hardware.chips / hardware.chip.flops,
        "tokens_per_second": slots / seconds,
        "samples_per_second": samples / seconds,
        "images_per_second_per_host": samples / seconds / hardware.hosts,
        "steps": config.train.steps,
        "days": days,
        "chip_hours": days * 24 * hardware.chips,
    }


def logit_rows(config: Config, mesh: Mapping[str, int]) -> int:
    """Return the number of slots whose logits a chip holds at a time: one chunk of each of its rows."""
    chunk = min(getattr(config.losses.get("text"), "chunk", 0) or config.data.seq_len, config.data.seq_len)
    return config.train.batch_size // config.train.accumulation // (mesh["slice"] * mesh["fsdp"]) * chunk
