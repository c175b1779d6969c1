"""The device mesh, and the rules that map logical axes to its axes.

Mesh axes, slowest link first: ``slice`` (data parallel over the data-center network), ``fsdp`` (parameters and batch),
``context`` (sequence), ``tensor``.

The axes are *auto*: the compiler places the collectives that the parameter shardings and a few constraints on
activations imply. Explicit axes would put the sharding of every intermediate into its type, which makes one model code
for all splits (heads that do not divide, vocabulary over two axes) a case analysis.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unihetero_jax.config import MeshConfig, TrainConfig
from unihetero_jax.errors import UsageError

AXES = ("slice", "fsdp", "context", "tensor")

MeshAxes = str | tuple[str, ...] | None
# Config key of a dimension without the leading ``config.``, its size, and the mesh axis that splits it.
Split = tuple[str, int, str]


@dataclass(frozen=True)
class Rules:
    """Mesh axes of each logical axis. ``None``: replicated along it."""

    batch: MeshAxes = ("slice", "fsdp")
    sequence: MeshAxes = "context"
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head: MeshAxes = None
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    pixels: MeshAxes = "tensor"
    features: MeshAxes = "fsdp"
    hidden: MeshAxes = "tensor"
    channels: MeshAxes = "fsdp"
    codes: MeshAxes = "fsdp"
    patches: MeshAxes = None
    layers: MeshAxes = None
    rank: MeshAxes = "fsdp"

    def spec(self, axes: Sequence[str | None], shape: Sequence[int] | None = None, mesh: Mesh | None = None) -> Any:
        """Return the partition of an array whose dimensions carry these logical axes.

        With ``shape`` and ``mesh``, a dimension that its mesh axes do not divide is left whole (``check_sharded``
        finds out whether that matters).

        Raises:
          ValueError: an unknown logical axis, or two dimensions that claim the same mesh axis.
        """
        names = {entry.name for entry in dataclasses.fields(self)}
        used: set[str] = set()
        parts: list[MeshAxes] = []
        for index, axis in enumerate(axes):
            if axis is not None and axis not in names:
                raise ValueError(f"unknown logical axis {axis!r}; expected one of {', '.join(sorted(names))}")
            wanted = getattr(self, axis) if axis is not None else None
            group = (wanted,) if isinstance(wanted, str) else tuple(wanted or ())
            if shape is not None and mesh is not None and shape[index] % math.prod(mesh.shape[name] for name in group):
                group = ()
            if clash := used.intersection(group):
                raise ValueError(f"logical axes {tuple(axes)} put mesh axis {sorted(clash)[0]!r} on two dimensions")
            used.update(group)
            parts.append(group[0] if len(group) == 1 else (group or None))
        return PartitionSpec(*parts)


RULES = Rules()


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Build the mesh of a run over all devices of all processes.

    Raises:
      UsageError: the sizes do not multiply to the number of devices, or ``slice`` is not a multiple of the TPU slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes, types = mesh_sizes(config, len(devices)), (AxisType.Auto,) * len(AXES)
    if devices[0].platform != "tpu":
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise UsageError(
            f"config.mesh.slice={sizes[0]}: the devices are in {slices} TPU slices, which only this axis may span; "
            f"expected config.mesh.slice={slices} or a multiple of it"
        )
    # Neighbors along the other axes stay within a slice, where the fast links are. A mesh axis may take a part of one
    # of the slice's dimensions (fsdp=128, tensor=2 on 16x16), which ``jax.make_mesh`` allows on v5e only.
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        inside, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
        arranged = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=types)


def mesh_sizes(config: MeshConfig, devices: int) -> list[int]:
    """Return the sizes of ``AXES`` over a number of devices, with the -1 filled in.

    Raises:
      UsageError: the sizes do not multiply to the number of devices.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    given = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if devices % fixed or (-1 not in sizes and fixed != devices):
        raise UsageError(
            f"config.mesh ({given}) does not fit {devices} devices: expected sizes whose product is {devices}"
        )
    return [devices // fixed if size == -1 else size for size in sizes]


def evaluation_mesh(batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Build a mesh for evaluation on the local devices: as many of them as divide the batch."""
    devices = jax.local_devices() if devices is None else list(devices)
    count = max(number for number in range(1, len(devices) + 1) if batch_size % number == 0)
    return make_mesh(MeshConfig(), devices[:count])


def check_rows(mesh: Mesh, config: TrainConfig) -> None:
    """Refuse a mesh that the rows of a forward pass cannot be split over.

    Raises:
      UsageError: naming the nearest batch size that works.
    """
    groups = mesh.shape["slice"] * mesh.shape["fsdp"]
    rows = config.batch_size // config.accumulation
    if rows % groups:
        nearest = max(1, round(rows / groups)) * groups * config.accumulation
        raise UsageError(
            f"config.train.batch_size / accumulation = {rows} rows do not divide over config.mesh slice × fsdp = "
            f"{groups}; the nearest batch size that does is {nearest}"
        )


def check_mesh(mesh: Mesh, config: TrainConfig, splits: Sequence[Split]) -> None:
    """Refuse a mesh that the batch, or one of the dimensions of a model, cannot be split over.

    Args:
      mesh: the run's device mesh.
      config: batch size and accumulation.
      splits: what is split along which axis.

    Raises:
      UsageError: naming the sizes that do not divide, and the nearest mesh of as many devices that works.
    """
    for key, size, axis in splits:
        if size % mesh.shape[axis]:
            nearest = _nearest(mesh, config, splits)
            raise UsageError(f"config.mesh.{axis}={mesh.shape[axis]} does not divide config.{key}={size}; {nearest}")
    check_rows(mesh, config)


def _nearest(mesh: Mesh, config: TrainConfig, splits: Sequence[Split]) -> str:
    """Find the mesh of as many devices that works and is most like this one; what does not fit goes to ``slice``.

    Among equally near ones, the one with the longest ``fsdp``: each device then stores the least.
    """
    rows, count = config.batch_size // config.accumulation, mesh.size
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    found = []
    for fsdp, context, tensor in itertools.product(divisors, repeat=3):
        if count % (fsdp * context * tensor):
            continue
        sizes = {"slice": count // (fsdp * context * tensor), "fsdp": fsdp, "context": context, "tensor": tensor}
        if not any(size % sizes[axis] for _, size, axis in splits):
            distance = sum(abs(math.log(sizes[axis] / mesh.shape[axis])) for axis in AXES)
            found.append((rows % (sizes["slice"] * fsdp) != 0, distance, -fsdp, sizes))
    # All on `slice` splits nothing but rows, so there is one.
    needs_rows, _, _, sizes = min(found, key=lambda entry: entry[:3])
    given = " ".join(f"--config.mesh.{axis}={size}" for axis, size in sizes.items())
    more = f", with a config.train.batch_size that {sizes['slice'] * sizes['fsdp']} divides" if needs_rows else ""
    return f"the nearest mesh of {count} devices that works: {given}{more}"


def sharding(mesh: Mesh, *axes: str | None, rules: Rules = RULES) -> NamedSharding:
    """Return the sharding of an array with these logical axes."""
    return NamedSharding(mesh, rules.spec(axes))


def constrain(array: jax.Array, mesh: Mesh | None, *axes: str | None) -> jax.Array:
    """Constrain the sharding of an activation inside a compiled function; without a mesh, do nothing."""
    if mesh is None or mesh.size == 1:
        return array
    return jax.lax.with_sharding_constraint(array, sharding(mesh, *axes))


def place(array: np.ndarray, where: NamedSharding) -> jax.Array:
    """Build a global array from a NumPy array that every process has whole."""
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def check_sharded(params: Any, shardings: Any, limit: float = 0.02) -> float:
    """Refuse parameters of which too many bytes are replicated along ``fsdp`` (without it, along ``tensor``).

    Vectors (norms, biases) cannot be split usefully and count as replicated like everything else; the limit leaves room
    for them.

    Args:
      params: tree of arrays or shape structs.
      shardings: tree of ``NamedSharding`` of the same structure.
      limit: largest accepted share of bytes.

    Returns:
      The replicated share of the bytes; 0 on one device.

    Raises:
      UsageError: naming the largest replicated parameters.
    """
    leaves = jax.tree.leaves_with_path(params)
    places = jax.tree.leaves(shardings)
    total, replicated = 0, []
    for (path, leaf), where in zip(leaves, places, strict=True):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        mesh = where.mesh
        split = {name for part in where.spec if part for name in ((part,) if isinstance(part, str) else part)}
        # What is split along `tensor` alone is still on every device along `fsdp`, usually a far longer axis.
        wanted = next((axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1), None)
        if wanted is not None and wanted not in split:
            replicated.append((size, jax.tree_util.keystr(path, simple=True, separator=".")))
    share = sum(size for size, _ in replicated) / max(total, 1)
    if share > limit:
        worst = ", ".join(f"{name} ({size:,} bytes)" for size, name in sorted(replicated, reverse=True)[:5])
        raise UsageError(
            f"{share:.1%} of the parameter bytes would be replicated on every device of the mesh (limit {limit:.0%}): "
            f"{worst}; choose widths that the mesh divides, and give parameters of your own logical axes"
        )
    return share
