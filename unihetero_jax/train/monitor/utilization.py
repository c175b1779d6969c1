"""Model FLOPs utilisation: what a step needs by our count, over what the devices could do in its time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from unihetero_jax.model.flops import FORMULA, Part
from unihetero_jax.parallel import hlo as program
from unihetero_jax.parallel.chips import chip_of

log = logging.getLogger(__name__)

# FLOPs of the product whose rate stands in for a peak that nobody publishes; some 20 ms of a core.
_PROBE_FLOPS = 2e9
_PROBES = 5


@dataclass(frozen=True)
class Peak:
    """FLOP/s that one device could do at most, and who says so."""

    flops: float
    source: str


@dataclass(frozen=True)
class Work:
    """What a step needs, and on what.

    Attributes:
      parts: of the model; empty where nobody has counted.
      devices: that share the step.
      peak: of each of them.
    """

    parts: Sequence[Part]
    devices: int
    peak: Peak

    @property
    def flops(self) -> float:
        """FLOPs of a step, over the global batch."""
        return sum(part.model for part in self.parts)

    def utilization(self, seconds: float) -> float:
        """MFU of a step that took so long (PaLM, arXiv 2204.02311, appendix B)."""
        return self.flops / seconds / self.devices / self.peak.flops


def find_peak(devices: Sequence[jax.Device], given: float, precise: bool) -> Peak:
    """What a device could do: as the config says, as its maker publishes, or (no one publishes it) as measured here.

    Args:
      devices: of the run.
      given: FLOP/s by the config; 0: not given.
      precise: whether products are float32 throughout; a measured rate is of the same type.
    """
    if given:
        return Peak(given, "config.logging.peak_flops")
    kind = devices[0].device_kind
    found = chip_of(kind)
    if found is not None:
        return Peak(found[1].flops, f"published bf16 peak of {found[0]}")
    name = "float32" if precise else "bfloat16"
    rate = measured_rate([device for device in devices if device.process_index == jax.process_index()], jnp.dtype(name))
    return Peak(rate, f"measured {name} product; nobody publishes a peak for {kind!r}")


def measured_rate(devices: Sequence[jax.Device], dtype: Any) -> float:
    """FLOP/s of each of some devices while all of them multiply square matrices, the best of a few times."""
    side = max(round((_PROBE_FLOPS / 2 / len(devices)) ** (1 / 3)), 64)
    factors = [jax.device_put(jnp.full((side, side), 1 / side, dtype), device) for device in devices]
    product = jax.jit(lambda x: jnp.dot(x, x, precision="highest"))
    seconds = math.inf
    for _ in range(1 + _PROBES):
        started = time.perf_counter()
        jax.block_until_ready([product(factor) for factor in factors])
        seconds = min(seconds, time.perf_counter() - started)
    return 2.0 * side**3 / seconds


def measure_work(parts: Sequence[Part], devices: Sequence[jax.Device], given: float, precise: bool) -> Work | None:
    """The work of a run's step; None where nobody has counted it."""
    return Work(parts, len(devices), find_peak(devices, given, precise)) if parts else None


def explain(work: Work, compiled: Any) -> None:
    """Says once by which formula MFU is computed, and what XLA counts."""
    log.info(
        "MFU: a step needs %.4g FLOPs (%s), of %d × %.4g FLOP/s (%s)",
        work.flops,
        FORMULA,
        work.devices,
        work.peak.flops,
        work.peak.source,
    )
    log.info("  %s", ", ".join(f"{part.name} {part.model:.3g}" for part in work.parts if part.model))
    executed = sum(part.executed for part in work.parts)
    counted = xla_flops(compiled)
    if counted is None:
        log.info("  the program does %.4g by our count; this backend does not tell XLA's", executed)
        return
    whole, once = (flops * work.devices for flops in counted)
    log.info(
        "  the program does %.4g by our count (masked parts of attention, recomputed parts; %.4g of it in kernels, "
        "into which XLA does not look) and %.4g by XLA's (%.4g with the body of each loop once)",
        executed,
        sum(part.executed for part in work.parts if part.kernel),
        whole,
        once,
    )


def xla_flops(compiled: Any) -> tuple[float, float] | None:
    """XLA's count of one device's program: with each loop as often as it runs, and as ``cost_analysis`` has it, once.

    None where a backend gives no count or no text.
    """
    try:
        cost = compiled.cost_analysis() or {}
        module = program.parse(compiled.as_text())
    except (NotImplementedError, RuntimeError, ValueError):  # XLA's own errors are RuntimeErrors
        return None
    once = float(cost.get("flops", 0.0))
    return once + program.matrix_flops(module) - program.matrix_flops(module, once=True), once


def memory_bytes() -> dict[str, int]:
    """Peak bytes in use on the fullest of this process's devices; where devices do not tell (CPU), of the process."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if stats:
        found = {"device_memory_bytes": max(stat.get("peak_bytes_in_use", 0) for stat in stats)}
        limits = [stat["bytes_limit"] for stat in stats if "bytes_limit" in stat]
        return {**found, "device_memory_limit_bytes": min(limits)} if limits else found
    import resource

    return {"host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
