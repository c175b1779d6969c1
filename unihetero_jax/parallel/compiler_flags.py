"""Compiler flags by chip generation, each with its reason; one table for the real step and for its plan.

Names and values are those that Google publishes for dense models (MaxText, ``benchmarks/xla_flags_library.py``) and JAX
for GPUs ("GPU performance tips"). That libtpu accepts them was tested by compiling; their gain on a chip was not
measured.

Left out, though often copied: the flags of fused gathers (``xla_tpu_enable_async_collective_fusion_fuse_all_gather``
and its like). libtpu 0.0.52 refuses them on v5p with a warning of wrong results, and supports them on v5e alone. Nor
those that let sparse cores scatter gradients (``xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter`` with
``xla_tpu_enable_sparse_core_reduce_scatter_v2``): on 8x8x4 of v5p and 16x16 of v6e they make real reduce-scatters
of some widths (4,096, 8,192, 12,288), not of others (5,632, 11,008, 32,128), and no run here showed that they are safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from unihetero_jax.parallel.chips import chip_of


@dataclass(frozen=True)
class Flag:
    """A setting of XLA that is not its default.

    Attributes:
      name: of the flag.
      value: of the flag.
      reason: why it is set.
      across: set only in a job of several slices.
    """

    name: str
    value: bool | int
    reason: str
    across: bool = False


_SLICES = (
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        True,
        "gradients cross the network between slices beside the products of the backward pass, not behind them",
        across=True,
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops",
        True,
        "the same where a layer's gradients are of unlike sizes, as those of attention and MLP are",
        across=True,
    ),
)
FLAGS: dict[str, tuple[Flag, ...]] = {
    "v4": _SLICES,
    "v5e": _SLICES,
    "v5p": _SLICES,
    "v6e": (
        *_SLICES,
        Flag(
            "xla_tpu_scoped_vmem_limit_kib",
            98_304,
            "v6e has 128 MiB of vector memory, of which one operation may use little by default; larger tiles of a "
            "product reuse more: 595 GiB through memory per chip and step instead of 728, by the plan of unihetero_7b "
            "on 16x16; compiling takes some 70% longer",
        ),
    ),
    "gpu": (
        Flag(
            "xla_gpu_enable_latency_hiding_scheduler",
            True,
            "the next layer's weights are gathered while this one's products run",
        ),
    ),
    "cpu": (),
}


def compiler_options(devices: Sequence[jax.Device]) -> dict[str, bool | int | str]:
    """Return ``jax.jit``'s options for a program on these devices; empty for a generation that is not in the table."""
    first, name = devices[0], devices[0].platform
    if name == "tpu":
        name, _ = chip_of(first.device_kind) or ("", None)
    several = len({getattr(device, "slice_index", 0) for device in devices}) > 1
    return {flag.name: flag.value for flag in FLAGS.get(name, ()) if several or not flag.across}
