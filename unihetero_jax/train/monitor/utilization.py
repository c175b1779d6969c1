"""Model FLOPs utilization: the FLOPs of a step by our count, over what the devices could do in its time."""

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

# FLOPs of the matrix product that is timed on CPUs, about 20 ms of a core; and side and number of those on others, some
# 10 ms of a large chip: a short program would measure how fast programs are launched.
_PROBE_FLOPS = 2e9
_PROBE_SIDE, _PROBE_PRODUCTS = 8192, 8
_PROBES = 5


@dataclass(frozen=True)
class Peak:
    """Peak speed of one device.

    Attributes:
      flops: FLOP/s.
      source: where the number comes from.
    """

    flops: float
    source: str


@dataclass(frozen=True)
class Work:
    """FLOPs of a step, and the devices that do them.

    Attributes:
      parts: of the model.
      devices: number of devices.
      peak: of each device.
    """

    parts: Sequence[Part]
    devices: int
    peak: Peak

    @property
    def flops(self) -> float:
        """FLOPs of a step, over the global batch."""
        return sum(part.model for part in self.parts)

    def utilization(self, seconds: float) -> float:
        """Return the MFU of a step of that many seconds (PaLM, arXiv 2204.02311, appendix B)."""
        return self.flops / seconds / self.devices / self.peak.flops


def find_peak(devices: Sequence[jax.Device], given: float, precise: bool) -> Peak:
    """Find the peak of a device: from the config, else as published, else as measured here.

    Args:
      devices: the run's devices.
      given: FLOP/s in the config; 0: not given.
      precise: whether products are float32 throughout, and a measured one too.
    """
    if given:
        return Peak(given, "config.logging.peak_flops")
    kind = devices[0].device_kind
    found = chip_of(kind)
    if found is not None:
        return Peak(found[1].flops, f"published bf16 peak of {found[0]}")
    name = "float32" if precise else "bfloat16"
    rate = measured_rate([device for device in devices if device.process_index == jax.process_index()], jnp.dtype(name))
    return Peak(rate, f"measured {name} product; no published peak for {kind!r}")


def measured_rate(devices: Sequence[jax.Device], dtype: Any) -> float:
    """Return FLOP/s per device while all of them multiply square matrices, the best of a few times."""
    side, products = _PROBE_SIDE, _PROBE_PRODUCTS
    if devices[0].platform == "cpu":
        side, products = max(round((_PROBE_FLOPS / 2 / len(devices)) ** (1 / 3)), 64), 1
    # Random numbers: chips draw less power, and clock higher, on constant ones. Their powers keep this scale.
    factor = jax.random.normal(jax.random.key(0), (side, side), dtype) / math.sqrt(side)
    factors = [jax.device_put(factor, device) for device in devices]

    @jax.jit
    def power(factor: jax.Array) -> jax.Array:
        found = factor
        for _ in range(products):
            found = jnp.dot(found, factor, precision="highest")
        return found

    seconds = math.inf
    for _ in range(1 + _PROBES):
        started = time.perf_counter()
        jax.block_until_ready([power(factor) for factor in factors])
        seconds = min(seconds, time.perf_counter() - started)
    return products * 2.0 * side**3 / seconds


def measure_work(parts: Sequence[Part], devices: Sequence[jax.Device], given: float, precise: bool) -> Work | None:
    """Return the work of a run's step; None where its FLOPs are not counted."""
    return Work(parts, len(devices), find_peak(devices, given, precise)) if parts else None


def log_work(work: Work, compiled: Any) -> None:
    """Log the formula of MFU, and XLA's count beside it."""
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
        log.info("  the program does %.4g by our count; this backend has no count of XLA's", executed)
        return
    whole, once = (flops * work.devices for flops in counted)
    log.info(
        "  the program does %.4g by our count (masked parts of attention, recomputed parts; %.4g of it in kernels, "
        "which XLA does not count) and %.4g by XLA's (%.4g with the body of each loop once)",
        executed,
        sum(part.executed for part in work.parts if part.kernel),
        whole,
        once,
    )


def xla_flops(compiled: Any) -> tuple[float, float] | None:
    """Return XLA's FLOPs of one device's program: with loops counted per trip, and once as in ``cost_analysis``.

    None where a backend has no count or no text.
    """
    try:
        cost = compiled.cost_analysis() or {}
        module = program.parse(compiled.as_text())
    except (NotImplementedError, RuntimeError, ValueError):  # XLA's own errors are RuntimeErrors
        return None
    once = float(cost.get("flops", 0.0))
    return once + program.matrix_flops(module) - program.matrix_flops(module, once=True), once


def memory_bytes() -> dict[str, int]:
    """Return the peak bytes in use on the fullest of this process's devices; on CPUs, those of the process."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if stats:
        found = {"device_memory_bytes": max(stat.get("peak_bytes_in_use", 0) for stat in stats)}
        limits = [stat["bytes_limit"] for stat in stats if "bytes_limit" in stat]
        return {**found, "device_memory_limit_bytes": min(limits)} if limits else found
    import resource  # not on every platform

    return {"host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
