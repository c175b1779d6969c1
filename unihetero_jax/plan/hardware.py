"""The hardware that ``--topology`` names; needs no JAX, so that a mistake in the flag is reported at once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.parallel.chips import CHIPS, Chip

_EXAMPLES = "v5p:8x8x8, v5p:8x8x8,slices=2, gpu:h100x64 or cpu:8"


@dataclass(frozen=True)
class Hardware:
    """The hardware that a plan is for.

    Attributes:
      name: the topology as the user wrote it.
      kind: the chip's name in ``CHIPS``.
      chips: number of chips of all slices.
      slices: number of slices.
      shape: shape of one slice, as TPU topologies are named; empty for other chips.
    """

    name: str
    kind: str
    chips: int
    slices: int = 1
    shape: str = ""

    @property
    def chip(self) -> Chip:
        """The chip's published numbers."""
        return CHIPS[self.kind]

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Whether the links along each dimension of a TPU slice close to a torus.

        For v4 and v5p all three dimensions close where a slice is made of whole cubes of 4x4x4; for v5e and v6e those
        of 16 chips (cloud.google.com/tpu/docs; the same as in MaxText's table of slices).
        """
        sides = [int(side) for side in self.shape.split("x")]
        if len(sides) == 3:
            whole = all(side % 4 == 0 for side in sides)
            return whole, whole, whole
        return sides[0] == 16, sides[1] == 16, False

    @property
    def hosts(self) -> int:
        """Number of hosts that feed the chips."""
        return max(1, self.chips // self.chip.host)


def parse_topology(text: str) -> Hardware:
    """Parse the value of ``--topology``: ``v5p:8x8x8[,slices=2]``, ``gpu:h100x64`` or ``cpu:8``.

    Raises:
      UsageError: the text names no hardware; says what is wrong, and the nearest valid name.
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
        raise UsageError(f"{where}: only TPUs have slices; expected the number of all devices")
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
        raise UsageError(f"{where}: {text!r} expected a number of devices, as in {_EXAMPLES}")
    return int(text)
