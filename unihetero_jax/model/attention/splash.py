"""Splash attention: JAX's Pallas kernel for TPUs. No scores in memory; blocks above the diagonal are skipped.

B rows, T slots, H query heads, G key/value heads, C head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as tpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unihetero_jax.config import Config
from unihetero_jax.config.components import ATTENTION, Part
from unihetero_jax.model.attention.base import RESIDUALS, Kernel
from unihetero_jax.model.attention.common.blocks import LANES, splash_block
from unihetero_jax.model.attention.common.shards import on_each_device


class SplashAttention(Kernel):
    """Where a sequence is split over ``context``, a device gathers its rows' keys and values."""

    platforms = ("tpu",)

    def refused(self, mesh: Any, slots: int, head_width: int, dtype: Any) -> str:
        """Refuse a device's part of a row that is not whole blocks."""
        return self.refused_blocks(mesh, slots)

    def __call__(
        self,
        query_BTHC: jax.Array,
        key_BTGC: jax.Array,
        value_BTGC: jax.Array,
        segment_BT: jax.Array,
        mesh: Mesh | None,
        platform: str,
    ) -> jax.Array:
        """Compute attention within segments; the kernel is interpreted where the platform is not ``tpu``."""
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
        return on_each_device(here, mesh, whole)(kernel, *arrays)

    def work(self, config: Config, forward: float, again: tuple[float, float], context: int) -> Part:
        """Count only blocks at or below the diagonal: of n·n it computes n·(n + 1) / 2, each whole.

        Forward: scores and mixing, two products. Backward, one kernel makes scores, their gradients and those of the
        queries; another the first two anew, and the gradients of keys and values: seven products, three of which are
        no gradient that is counted, 1.5 times the forward pass (jax 0.10, ``splash_attention_kernel.py``). The result
        is saved by name under ``remat='dots'``, and heads are filled up to whole lanes.
        """
        blocks = config.data.seq_len // splash_block(config.data.seq_len // context)
        width = config.model.decoder.head_dim
        lanes = -(-width // LANES) * LANES / width
        return Part("decoder attention", forward, 2.0, 1.5 + again[0], (blocks + 1) / blocks * lanes, kernel=True)


ATTENTION.register("splash")(SplashAttention())
