"""Activation memory and traffic of a train step by formula; needs no JAX.

The formulas assume a good compiler: weights are gathered in the type of the matrix products, once forward and once
backward; gradients are scattered once in float32; a layer's activations are saved as its remat policy says.
"""

from __future__ import annotations

from collections.abc import Mapping

from unihetero_jax.config import Config, DecoderConfig, frozen_groups, visual_tokens
from unihetero_jax.parallel.hlo import Collective

BFLOAT16_BYTES, FLOAT32_BYTES = 2, 4


def product_bytes(decoder: DecoderConfig) -> int:
    """Return the bytes per number in the decoder's matrix products."""
    return BFLOAT16_BYTES if decoder.dtype == "bfloat16" else FLOAT32_BYTES


def activation_bytes(config: Config, vocabulary: int, mesh: Mapping[str, int], attention: str) -> float:
    """Return the bytes per chip that the backward pass saves, and the largest temporary beside them.

    Attention kernels store no scores of all pairs of slots, but cuDNN's takes a mask of all pairs, shared by the heads.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
      mesh: size of each mesh axis.
      attention: the attention implementation.
    """
    decoder, data = config.model.decoder, config.data
    size = product_bytes(decoder)
    rows = config.train.batch_size / config.train.accumulation / (mesh["slice"] * mesh["fsdp"])
    tokens, tensor = rows * data.slots / mesh["context"], mesh["tensor"]
    heads = decoder.heads * decoder.head_dim
    wide = (2 * heads + 2 * decoder.kv_heads * decoder.head_dim + 2 * decoder.mlp_width) / tensor
    pairs = rows * data.slots**2 / mesh["context"]
    plain = pairs * decoder.heads / tensor * (FLOAT32_BYTES + size)
    scores = {"splash": 0.0, "cudnn": pairs * size}.get(attention, plain)
    saved = {
        "full": tokens * decoder.width * size,
        "dots": tokens * (2 * decoder.width + wide) * size,
        "none": tokens * (4 * decoder.width + 3 * wide) * size + scores,
    }[decoder.remat]
    layer = tokens * (4 * decoder.width + 2 * wide) * size + 2 * scores
    logits = logit_rows(config, mesh) * vocabulary / tensor * 3 * FLOAT32_BYTES
    visual = rows * data.images_per_row * visual_tokens(config)[1] * decoder.width * 4 * FLOAT32_BYTES
    return saved * decoder.layers + max(layer, logits) + visual


def logit_rows(config: Config, mesh: Mapping[str, int]) -> int:
    """Return the number of slots whose logits a chip holds at a time: one chunk of each of its rows."""
    chunk = min(getattr(config.losses.get("text"), "chunk", 0) or config.data.slots, config.data.slots)
    return config.train.batch_size // config.train.accumulation // (mesh["slice"] * mesh["fsdp"]) * chunk


def traffic(
    config: Config, state: Mapping[str, int], mesh: Mapping[str, int], gradient: int = FLOAT32_BYTES
) -> list[Collective]:
    """Return the least communication of a step, in bytes that each chip receives.

    Along ``fsdp``, trained weights are gathered twice in the type of the products and their gradients are scattered
    once. Frozen weights are gathered once in the type they are stored as; those of a frozen decoder twice, because
    gradients pass through it.

    Args:
      config: the run's configuration.
      state: result of ``estimate.state_bytes``.
      mesh: size of each mesh axis.
      gradient: bytes per number of the gradients.
    """
    decoder = config.model.decoder
    size = product_bytes(decoder)
    shards, passes = mesh["fsdp"], config.train.accumulation
    whole = state["trained_split_bytes"] / FLOAT32_BYTES * (shards - 1)
    frozen = state["frozen_split_bytes"] * (shards - 1)
    frozen *= 2 if "decoder" in frozen_groups(config) else 1
    found = []
    if shards > 1:
        gathered, scattered = passes * (2 * whole * size + frozen), passes * whole * gradient
        found.append(Collective("all-gather", "fsdp", 2.0 * passes, gathered))
        found.append(Collective("reduce-scatter", "fsdp", float(passes), scattered))
    if mesh["slice"] > 1:
        found.append(Collective("all-reduce", "slice", 1.0, 2 * state["trained_bytes"] * (1 - 1 / mesh["slice"])))
    tokens = config.train.batch_size * config.data.slots / (mesh["slice"] * mesh["fsdp"] * mesh["context"])
    if (parts := mesh["tensor"]) > 1:
        count = 4.0 * decoder.layers
        summed = count * 2 * tokens * decoder.width * size * (1 - 1 / parts)
        found.append(Collective("all-reduce", "tensor", count, summed))
    if (parts := mesh["context"]) > 1:
        width = 2 * decoder.kv_heads * decoder.head_dim / mesh["tensor"]
        count = 3.0 * decoder.layers
        found.append(Collective("all-gather", "context", count, count * tokens * (parts - 1) * width * size))
    return found
