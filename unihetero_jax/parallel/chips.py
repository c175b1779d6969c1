"""Published numbers of accelerators. No JAX here: a mistyped flag should be refused without its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Published numbers of one chip.

    Attributes:
      platform: ``tpu``, ``gpu`` or ``cpu``.
      flops: dense bf16 FLOP/s.
      hbm_bytes: size of the memory.
      hbm_rate: memory bandwidth, bytes/s.
      link_rate: bandwidth of all its fast links together, bytes/s.
      network_rate: its share of the host's network, bytes/s.
      host: chips per host of a large job.
      dimensions: of a topology's name; 0: a number of chips.
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
    # cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB at 1,228 GB/s, 2,400 Gbit/s of links, 4 chips per host.
    "v4": Chip("tpu", 275e12, 32 * 2**30, 1228e9, 300e9, 6.25e9, 4, 3),
    # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GiB at 819 GB/s, 1,600 Gbit/s of links.
    "v5e": Chip("tpu", 197e12, 16 * 2**30, 819e9, 200e9, 6.25e9, 4, 2),
    # cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB at 2,765 GB/s, 4,800 Gbit/s of links.
    "v5p": Chip("tpu", 459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9, 4, 3),
    # cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GiB at 1,638 GB/s, 3,584 Gbit/s of links.
    "v6e": Chip("tpu", 918e12, 32 * 2**30, 1638e9, 448e9, 6.25e9, 4, 2),
    # The TPUs' network: 200 Gbit/s per host of 4 chips (jax-ml.github.io/scaling-book, "TPU networking").
    # NVIDIA's A100 80GB SXM data sheet: 312 TFLOP/s, 2,039 GB/s, NVLink 600 GB/s; DGX A100: 200 Gbit/s per GPU.
    "a100": Chip("gpu", 312e12, 80e9, 2039e9, 300e9, 25e9, 8, 0),
    # NVIDIA's H100 SXM data sheet: 989 TFLOP/s (dense), 3,350 GB/s, NVLink 900 GB/s; DGX H100: 400 Gbit/s per GPU.
    "h100": Chip("gpu", 989e12, 80e9, 3350e9, 450e9, 50e9, 8, 0),
    # NVIDIA's H200 SXM data sheet: the H100 with 141 GB at 4,800 GB/s.
    "h200": Chip("gpu", 989e12, 141e9, 4800e9, 450e9, 50e9, 8, 0),
    # Not from a data sheet: the order of magnitude of one server core, with its share of the memory bandwidth.
    "cpu": Chip("cpu", 5e10, 4e9, 1e10, 5e9, 1e9, 8, 0),
}

# JAX's ``device_kind`` of each chip. Slower cards of the same name, such as an H100 on PCIe, are left out.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}


def chip_of(device_kind: str) -> tuple[str, Chip] | None:
    """Return the name and numbers of the chip with a ``device_kind``; None where they are not in the table."""
    name = _KINDS.get(device_kind)
    return None if name is None else (name, CHIPS[name])
