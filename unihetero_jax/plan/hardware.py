"""Chips by name, and what ``--topology`` asks for. No JAX here: a slip in the flag should not wait for it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from unihetero_jax.errors import UsageError, nearest


@dataclass(frozen=True)
class Chip:
    """One chip as its maker describes it.

    ``flops``: dense bf16 FLOP/s. ``hbm_bytes``, ``hbm_rate``: memory, and bytes/s through it. ``link_rate``: bytes/s of
    all its fast links together, as published. ``network_rate``: bytes/s that it has of its host's network. ``host``:
    chips a host of a large job. ``dimensions``: of a topology's name; 0: a number of chips.
    """

    platform: str
    flops: float
    hbm_bytes: float
    hbm_rate: float
    link_rate: float
    network_rate: float
    host: int
    dimensions: int


CHIPS = {
    # cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB at 1,228 GB/s, 2,400 Gbit/s of links, 4 chips a host.
    "v4": Chip("tpu", 275e12, 32 * 2**30, 1228e9, 300e9, 6.25e9, 4, 3),
    # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GiB at 819 GB/s, 1,600 Gbit/s of links.
    "v5e": Chip("tpu", 197e12, 16 * 2**30, 819e9, 200e9, 6.25e9, 4, 2),
    # cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB at 2,765 GB/s, 4,800 Gbit/s of links.
    "v5p": Chip("tpu", 459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9, 4, 3),
    # cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GiB at 1,638 GB/s, 3,584 Gbit/s of links.
    "v6e": Chip("tpu", 918e12, 32 * 2**30, 1638e9, 448e9, 6.25e9, 4, 2),
    # The TPUs' network: 200 Gbit/s a host of 4 chips (jax-ml.github.io/scaling-book, "TPU networking").
    # NVIDIA's A100 80GB SXM data sheet: 312 TFLOP/s, 2,039 GB/s, NVLink 600 GB/s; DGX A100: 200 Gbit/s a GPU.
    "a100": Chip("gpu", 312e12, 80e9, 2039e9, 300e9, 25e9, 8, 0),
    # NVIDIA's H100 SXM data sheet: 989 TFLOP/s (dense), 3,350 GB/s, NVLink 900 GB/s; DGX H100: 400 Gbit/s a GPU.
    "h100": Chip("gpu", 989e12, 80e9, 3350e9, 450e9, 50e9, 8, 0),
    # NVIDIA's H200 SXM data sheet: the H100 with 141 GB at 4,800 GB/s.
    "h200": Chip("gpu", 989e12, 141e9, 4800e9, 450e9, 50e9, 8, 0),
    # Nobody's data sheet: the order of magnitude of one core of a server, which shares its memory's bandwidth.
    "cpu": Chip("cpu", 5e10, 4e9, 1e10, 5e9, 1e9, 8, 0),
}
_EXAMPLES = "v5p:8x8x8, v5p:8x8x8,slices=2, gpu:h100x64 or cpu:8"


@dataclass(frozen=True)
class Hardware:
    """What is planned for. ``shape``: of one slice, as TPU topologies are named; empty for others."""

    name: str
    kind: str
    chips: int
    slices: int = 1
    shape: str = ""

    @property
    def chip(self) -> Chip:
        """The chip's numbers."""
        return CHIPS[self.kind]

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Along which dimensions of a TPU slice links go round from the last chip to the first.

        Of v4 and v5p: all three, where a slice is made of whole cubes of 4x4x4. Of v5e and v6e: those of 16 chips
        (cloud.google.com/tpu/docs; the same as in MaxText's table of slices).
        """
        sides = [int(side) for side in self.shape.split("x")]
        if len(sides) == 3:
            whole = all(side % 4 == 0 for side in sides)
            return whole, whole, whole
        return sides[0] == 16, sides[1] == 16, False

    @property
    def hosts(self) -> int:
        """Hosts that feed the chips."""
        return max(1, self.chips // self.chip.host)


def parse_topology(text: str) -> Hardware:
    """The hardware that a ``--topology`` names: ``v5p:8x8x8[,slices=2]``, ``gpu:h100x64`` or ``cpu:8``.

    Raises:
      UsageError: naming what is wrong, and the nearest name there is.
    """
    where = f"--topology={text}"
    body, comma, options = text.partition(",")
    kind, colon, size = body.partition(":")
    slices = 1
    if comma:
        found = re.fullmatch(r"slices=([1-9][0-9]{0,3})", options)
        if not found:
            raise UsageError(f"{where}: {options!r} after the comma: expected slices=N, as in v5p:8x8x8,slices=2")
        slices = int(found[1])
    names = [name for name, chip in CHIPS.items() if chip.platform == "tpu"] + ["gpu", "cpu"]
    if kind not in names or not colon:
        raise UsageError(f"{where}: expected one of {', '.join(names)}, as in {_EXAMPLES}{nearest(kind, names)}")
    if kind in ("gpu", "cpu") and slices > 1:
        raise UsageError(f"{where}: slices are of TPUs; give the number of all devices")
    if kind == "cpu":
        return Hardware(text, "cpu", _count(where, size))
    if kind == "gpu":
        model, cross, count = size.rpartition("x")
        gpus = [name for name, chip in CHIPS.items() if chip.platform == "gpu"]
        if not cross or model not in gpus:
            raise UsageError(
                f"{where}: expected MODELxNUMBER of {', '.join(gpus)}, as in gpu:h100x64{nearest(model or size, gpus)}"
            )
        return Hardware(text, model, _count(where, count))
    dimensions = CHIPS[kind].dimensions
    if not re.fullmatch(r"[1-9][0-9]{0,3}" + r"x[1-9][0-9]{0,3}" * (dimensions - 1), size):
        example = "x".join(["8"] * dimensions)
        raise UsageError(f"{where}: a slice of {kind} has {dimensions} dimensions, as in {kind}:{example}")
    return Hardware(text, kind, math.prod(map(int, size.split("x"))) * slices, slices, size)


def _count(where: str, text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise UsageError(f"{where}: {text!r} is no number of devices, as in {_EXAMPLES}")
    return int(text)
