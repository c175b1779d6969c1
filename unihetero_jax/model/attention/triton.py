"""FlashAttention in Pallas for NVIDIA GPUs: neither scores nor mask in memory; does not split a sequence."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as gpu
from jax.sharding import Mesh

from unihetero_jax.config.components import ATTENTION
from unihetero_jax.model.attention.base import Kernel
from unihetero_jax.model.attention.common.shards import on_each_device


class TritonAttention(Kernel):
    """The kernel has no groups; each query head gets its own copy of keys and values."""

    platforms = ("gpu",)

    def refused(self, mesh: Any, slots: int, head_width: int, dtype: Any) -> str:
        """Refuse a row that is not whole blocks on one device."""
        return self.refused_blocks(mesh, slots) or self.refused_split(mesh)

    def __call__(
        self,
        query_BTHC: jax.Array,
        key_BTGC: jax.Array,
        value_BTGC: jax.Array,
        segment_BT: jax.Array,
        mesh: Mesh | None,
        platform: str,
    ) -> jax.Array:
        """Compute attention within segments; the kernel is interpreted where the platform is not ``gpu``."""
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
        return here(*arrays) if mesh is None else on_each_device(here, mesh)(*arrays)


ATTENTION.register("triton")(TritonAttention())
