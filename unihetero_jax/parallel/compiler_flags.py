"""Compiler flags by chip generation, each with its reason: the one table for the real step and for its plan."""

from __future__ import annotations

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Flag:
    """A setting of XLA that is not its default, and why."""

    name: str
    value: bool | int | str
    reason: str


# A generation's name in a topology, and what jax calls its devices.
KINDS = {
    "v4": ("TPU v4",),
    "v5e": ("TPU v5 lite", "TPU v5e"),
    "v5p": ("TPU v5", "TPU v5p"),
    "v6e": ("TPU v6 lite", "TPU v6e"),
}
FLAGS: dict[str, tuple[Flag, ...]] = {
    "v4": (),
    "v5e": (),
    "v5p": (),
    "v6e": (),
    "gpu": (),
    "cpu": (),
}


def generation(device: jax.Device) -> str:
    """The name of a device's generation in ``FLAGS``; a TPU that is not in it is named as jax does."""
    if device.platform != "tpu":
        return "gpu" if device.platform in ("gpu", "cuda", "rocm") else device.platform
    named = [name for name, kinds in KINDS.items() if device.device_kind in kinds]
    return named[0] if named else device.device_kind


def compiler_options(device: jax.Device) -> dict[str, bool | int | str]:
    """What to hand ``jax.jit`` for programs of such devices; empty for those that are not in the table."""
    return {flag.name: flag.value for flag in FLAGS.get(generation(device), ())}
