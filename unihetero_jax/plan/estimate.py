"""A step's memory and traffic by formula, for GPUs and to choose what a search compiles.

The formulas assume a good compiler: weights are gathered in the type of the matrix products, once forward and once
backward; gradients are scattered once in float32; a layer's activations are saved as its remat policy says.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from unihetero_jax.config import Config, DecoderConfig, MeshConfig, frozen_groups, resolve, visual_tokens
from unihetero_jax.model.attention.base import chosen, find
from unihetero_jax.parallel.hlo import Collective
from unihetero_jax.parallel.mesh import AXES, mesh_sizes
from unihetero_jax.plan.hardware import Hardware
from unihetero_jax.plan.lowering import abstract_state, bytes_per_chip
from unihetero_jax.plan.roofline import logit_rows
from unihetero_jax.train.unified import check_model_mesh

# Bytes per number.
_BFLOAT16, _FLOAT32 = 2, 4


def estimate(config: Config, vocabulary: int, hardware: Hardware) -> dict[str, Any]:
    """Return what compiling would find, as far as formulas give it.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
      hardware: the hardware to plan for.

    Raises:
      UsageError: the mesh does not fit the number of chips, or does not divide what it has to.
    """
    sizes = mesh_sizes(config.mesh, hardware.chips)
    mesh = AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    named = dict(zip(AXES, sizes, strict=True))
    state = state_bytes(config, vocabulary, mesh)
    attention = chosen(config, mesh, hardware.chip.platform)
    activations = activation_bytes(config, vocabulary, named, attention)
    weights = state["parameter_bytes"] / _FLOAT32 * _product_bytes(config.model.decoder) * named["fsdp"]
    # The gathered weights of two layers are there at once: one in use, one on its way. And every gradient, until the
    # update.
    gathered = 2 * weights / max(config.model.decoder.layers, 1) if named["fsdp"] > 1 else 0
    return {
        "mesh": named,
        "attention": attention,
        "parameter_bytes": state["parameter_bytes"],
        "optimizer_bytes": state["optimizer_bytes"],
        "temporary_bytes": activations + state["trained_bytes"] + gathered,
        "hbm_traffic_bytes": 3 * weights + 3 * activations + 3 * (state["parameter_bytes"] + state["optimizer_bytes"]),
        "collectives": [vars(entry) for entry in traffic(config, state, named)],
        "estimate": True,
    }


def state_bytes(config: Config, vocabulary: int, mesh: Any) -> dict[str, int]:
    """Return the bytes per chip of parameters, trained and frozen, and of the optimizer's state.

    ``…_split_bytes`` counts arrays split along ``fsdp``; an array that does not divide is whole on every chip.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
      mesh: the mesh, a ``Mesh`` or ``AbstractMesh``.

    Raises:
      UsageError: the mesh does not divide what it has to.
    """
    check_model_mesh(mesh, config)
    # A search asks for the same model on the same mesh with other batches and policies.
    model = dataclasses.replace(config.model, decoder=dataclasses.replace(config.model.decoder, remat="none"))
    train = dataclasses.replace(config.train, batch_size=1, accumulation=1)
    alike = dataclasses.replace(config, model=model, train=train, mesh=MeshConfig())
    return _state_bytes(json.dumps(alike.to_dict(), sort_keys=True), vocabulary, mesh)


@functools.lru_cache(maxsize=64)
def _state_bytes(config_json: str, vocabulary: int, mesh: Any) -> dict[str, int]:
    state = abstract_state(resolve(json.loads(config_json)), vocabulary, mesh)
    trained, frozen = state.learner.split(state.shapes["params"])
    return {
        "parameter_bytes": bytes_per_chip(state.shapes["params"]),
        "trained_bytes": bytes_per_chip(trained),
        "trained_split_bytes": bytes_per_chip(_split_along_fsdp(trained)),
        "frozen_split_bytes": bytes_per_chip(_split_along_fsdp(frozen)),
        "optimizer_bytes": bytes_per_chip((state.shapes["opt_state"], state.shapes["ema"])),
    }


def _split_along_fsdp(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if "fsdp" in jax.tree.leaves(tuple(leaf.sharding.spec))]


def least_fsdp_bytes(config: Config, vocabulary: int, mesh: Any) -> dict[str, float]:
    """Return the least bytes each chip receives along ``fsdp``, by the type of the gradients.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
      mesh: the mesh, a ``Mesh`` or ``AbstractMesh``.
    """
    state = state_bytes(config, vocabulary, mesh)
    return {
        name: sum(entry.bytes for entry in traffic(config, state, dict(mesh.shape), size) if entry.axis == "fsdp")
        for name, size in (("float32", _FLOAT32), ("bfloat16", _BFLOAT16))
    }


def activation_bytes(config: Config, vocabulary: int, mesh: Mapping[str, int], attention: str) -> float:
    """Return the bytes per chip that the backward pass saves, and the largest temporary beside them.

    Args:
      config: the run's configuration.
      vocabulary: number of token ids.
      mesh: size of each mesh axis.
      attention: the attention implementation.
    """
    decoder, data = config.model.decoder, config.data
    size = _product_bytes(decoder)
    rows = config.train.batch_size / config.train.accumulation / (mesh["slice"] * mesh["fsdp"])
    tokens, tensor = rows * data.seq_len / mesh["context"], mesh["tensor"]
    heads = decoder.heads * decoder.head_dim
    wide = (2 * heads + 2 * decoder.kv_heads * decoder.head_dim + 2 * decoder.mlp_width) / tensor
    pairs = rows * data.seq_len**2 / mesh["context"]
    scores = find(attention).score_bytes(pairs, decoder.heads / tensor, size)
    saved = {
        "full": tokens * decoder.width * size,
        "dots": tokens * (2 * decoder.width + wide) * size,
        "none": tokens * (4 * decoder.width + 3 * wide) * size + scores,
    }[decoder.remat]
    layer = tokens * (4 * decoder.width + 2 * wide) * size + 2 * scores
    logits = logit_rows(config, mesh) * vocabulary / tensor * 3 * _FLOAT32
    visual = rows * data.images_per_row * visual_tokens(config)[1] * decoder.width * 4 * _FLOAT32
    return saved * decoder.layers + max(layer, logits) + visual


def traffic(
    config: Config, state: Mapping[str, int], mesh: Mapping[str, int], gradient: int = _FLOAT32
) -> list[Collective]:
    """Return the least communication of a step, in bytes that each chip receives.

    Along ``fsdp``, trained weights are gathered twice in the type of the products and their gradients are scattered
    once. Frozen weights are gathered once in the type they are stored as; those of a frozen decoder twice, because
    gradients pass through it.

    Args:
      config: the run's configuration.
      state: result of ``state_bytes``.
      mesh: size of each mesh axis.
      gradient: bytes per number of the gradients.
    """
    decoder = config.model.decoder
    size = _product_bytes(decoder)
    shards, passes = mesh["fsdp"], config.train.accumulation
    whole = state["trained_split_bytes"] / _FLOAT32 * (shards - 1)
    frozen = state["frozen_split_bytes"] * (shards - 1)
    frozen *= 2 if "decoder" in frozen_groups(config) else 1
    found = []
    if shards > 1:
        gathered, scattered = passes * (2 * whole * size + frozen), passes * whole * gradient
        found.append(Collective("all-gather", "fsdp", 2.0 * passes, gathered))
        found.append(Collective("reduce-scatter", "fsdp", float(passes), scattered))
    if mesh["slice"] > 1:
        found.append(Collective("all-reduce", "slice", 1.0, 2 * state["trained_bytes"] * (1 - 1 / mesh["slice"])))
    tokens = config.train.batch_size * config.data.seq_len / (mesh["slice"] * mesh["fsdp"] * mesh["context"])
    if (parts := mesh["tensor"]) > 1:
        count = 4.0 * decoder.layers
        summed = count * 2 * tokens * decoder.width * size * (1 - 1 / parts)
        found.append(Collective("all-reduce", "tensor", count, summed))
    if (parts := mesh["context"]) > 1:
        width = 2 * decoder.kv_heads * decoder.head_dim / mesh["tensor"]
        count = 3.0 * decoder.layers
        found.append(Collective("all-gather", "context", count, count * tokens * (parts - 1) * width * size))
    return found


def _product_bytes(decoder: DecoderConfig) -> int:
    """Return the bytes per number in the decoder's matrix products."""
    return _BFLOAT16 if decoder.dtype == "bfloat16" else _FLOAT32
