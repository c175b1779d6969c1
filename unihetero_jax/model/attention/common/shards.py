"""A kernel on each device's part of packed rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec


def on_each_device(function: Callable[..., jax.Array], mesh: Mesh, *before: object) -> Callable[..., jax.Array]:
    """Apply ``function`` to each device's part of queries, keys, values and segments.

    ``before``: partitions of the arguments that come first.
    """
    heads, slots = (
        PartitionSpec(("slice", "fsdp"), "context", "tensor", None),
        PartitionSpec(("slice", "fsdp"), "context"),
    )
    return jax.shard_map(
        function, mesh=mesh, in_specs=(*before, heads, heads, heads, slots), out_specs=heads, check_vma=False
    )
