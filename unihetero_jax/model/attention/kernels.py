"""Attention of packed rows by kernels that keep no scores in memory: JAX's own, in Pallas, on each device's part.

B rows, T slots, H query heads, G key/value heads, C head width; interpreted where the devices are not the kernel's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as gpu
from jax.experimental.pallas.ops.tpu import splash_attention as tpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unihetero_jax.model.attention.blocks import LANES, splash_block
from unihetero_jax.model.attention.dispatch import RESIDUALS

_BATCH = ("slice", "fsdp")


def splash(
    query_BTHC: jax.Array,
    key_BTGC: jax.Array,
    value_BTGC: jax.Array,
    segment_BT: jax.Array,
    mesh: Mesh | None,
    platform: str,
) -> jax.Array:
    """Splash attention (TPU). Where a sequence is split over ``context``, a device gathers its rows' keys and values.

    Args:
      query_BTHC: queries, not scaled.
      key_BTGC: keys.
      value_BTGC: values.
      segment_BT: of the slots.
      mesh: that the arrays are split over.
      platform: of the mesh; the kernel is interpreted where it is not ``tpu``.

    Returns:
      [B, T, H, C].
    """
    slots, heads, width = query_BTHC.shape[1:]
    shards = {"context": 1, "tensor": 1} if mesh is None else mesh.shape
    block = splash_block(slots // shards["context"])
    # The kernel wants heads of full lanes; zeros change neither products nor, cut off again, values.
    missing = -width % LANES
    masks = [tpu.CausalMask((slots, slots))] * (heads // shards["tensor"])
    sizes = tpu.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    # Constants of this trace: a kernel made inside `shard_map` or `scan` must not outlive it.
    with jax.ensure_compile_time_eval():
        kernel = tpu.make_splash_mha(
            tpu.MultiHeadMask(masks),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=shards["context"],
            residual_checkpoint_name=RESIDUALS,
            interpret=platform != "tpu",
        )

    def here(kernel: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        query, key, value, segment = arrays
        everyone = segment
        if shards["context"] > 1:
            key, value = (jax.lax.all_gather(array, "context", axis=1, tiled=True) for array in (key, value))
            everyone = jax.lax.all_gather(segment, "context", axis=1, tiled=True)
        padding = ((0, 0), (0, 0), (0, 0), (0, missing))
        by_head = [jnp.pad(array, padding).swapaxes(1, 2) for array in (query / math.sqrt(width), key, value)]
        mixed = jax.vmap(kernel)(*by_head, tpu.SegmentIds(q=segment, kv=everyone))
        return mixed.swapaxes(1, 2)[..., :width].astype(query.dtype)

    arrays = (query_BTHC, key_BTGC, value_BTGC, segment_BT)
    if mesh is None:
        return here(kernel, *arrays)
    whole = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, "context")))
    return _on_each_device(here, mesh, whole)(kernel, *arrays)


def triton(
    query_BTHC: jax.Array,
    key_BTGC: jax.Array,
    value_BTGC: jax.Array,
    segment_BT: jax.Array,
    mesh: Mesh | None,
    platform: str,
) -> jax.Array:
    """FlashAttention in Pallas for NVIDIA GPUs; arguments as of ``splash``, the mesh without ``context``."""
    _, slots, _, width = query_BTHC.shape
    block = min(gpu.BlockSizes.get_default().block_q, slots)
    sizes = gpu.BlockSizes(
        block_q=block, block_k=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = functools.partial(
        gpu.mha, sm_scale=1.0 / math.sqrt(width), causal=True, block_sizes=sizes, interpret=platform != "gpu"
    )

    def here(query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array) -> jax.Array:
        # The kernel has no groups; each query head is given its own copy.
        key, value = (jnp.repeat(array, query.shape[2] // array.shape[2], axis=2) for array in (key, value))
        mixed: jax.Array = kernel(query, key, value, segment)
        return mixed

    arrays = (query_BTHC, key_BTGC, value_BTGC, segment_BT)
    return here(*arrays) if mesh is None else _on_each_device(here, mesh)(*arrays)


def _on_each_device(function: Callable[..., jax.Array], mesh: Mesh, *before: object) -> Callable[..., jax.Array]:
    """``function`` of each device's part of queries, keys, values and segments, after arguments split as ``before``."""
    heads, slots = PartitionSpec(_BATCH, "context", "tensor", None), PartitionSpec(_BATCH, "context")
    return jax.shard_map(
        function, mesh=mesh, in_specs=(*before, heads, heads, heads, slots), out_specs=heads, check_vma=False
    )
