"""A step's memory and traffic by formula: for chips that nothing here compiles for, and to choose what to compile.

It assumes what a good compiler does: weights are gathered in the type of the products, once forward and once backward,
and gradients are scattered once in float32; a layer's activations are kept as its remat policy says.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

from unihetero_jax.config import Config, MeshConfig, frozen_groups, resolve, visual_tokens
from unihetero_jax.model.attention.base import find
from unihetero_jax.parallel.hlo import Collective
from unihetero_jax.plan.hardware import Hardware

# Bytes of a number.
_BFLOAT16, _FLOAT32 = 2, 4


def state_bytes(config: Config, vocabulary: int, mesh: Any) -> dict[str, int]:
    """Bytes a chip of parameters, of the trained and the frozen ones among them, and of the optimiser's state.

    ``…_split_bytes`` are of those that are split along ``fsdp``; what does not divide is whole on every chip.

    Args:
      config: of the run.
      vocabulary: token ids.
      mesh: real or abstract.

    Raises:
      UsageError: the mesh does not divide what it has to.
    """
    from unihetero_jax.parallel.mesh import check_mesh

    check_mesh(mesh, config)
    # A search asks for the same model on the same mesh with other batches and policies.
    decoder = dataclasses.replace(config.model.decoder, remat="none")
    train = dataclasses.replace(config.train, batch_size=1, accumulation=1)
    alike = dataclasses.replace(
        config, model=dataclasses.replace(config.model, decoder=decoder), train=train, mesh=MeshConfig()
    )
    return dict(_state_bytes(json.dumps(alike.to_dict(), sort_keys=True), vocabulary, mesh))


@functools.lru_cache(maxsize=64)
def _state_bytes(config_json: str, vocabulary: int, mesh: Any) -> dict[str, int]:
    import jax

    from unihetero_jax.model.build import define
    from unihetero_jax.plan.compiling import bytes_a_chip
    from unihetero_jax.train.state import state_shardings
    from unihetero_jax.train.unified import UnifiedLearner

    config = resolve(json.loads(config_json))
    learner = UnifiedLearner(config, define(config, vocabulary))
    shapes, places = state_shardings(learner, learner.optimizer(), mesh)
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )
    trained, frozen = learner.split(state["params"])
    return {
        "parameter_bytes": bytes_a_chip(state["params"]),
        "trained_bytes": bytes_a_chip(trained),
        "trained_split_bytes": bytes_a_chip(_split(trained)),
        "frozen_split_bytes": bytes_a_chip(_split(frozen)),
        "optimizer_bytes": bytes_a_chip((state["opt_state"], state["ema"])),
    }


def _split(tree: Any) -> list[Any]:
    """The shapes of a tree that are split along ``fsdp``."""
    import jax

    return [leaf for leaf in jax.tree.leaves(tree) if "fsdp" in jax.tree.leaves(tuple(leaf.sharding.spec))]


def activation_bytes(config: Config, vocabulary: int, mesh: dict[str, int], attention: str) -> float:
    """Bytes a chip that the backward pass keeps, and the largest pieces of work beside them.

    The kernels of ``attention`` leave no scores of all pairs of slots; cuDNN's is given a mask of them for all heads.
    """
    decoder, data = config.model.decoder, config.data
    size = _BFLOAT16 if decoder.dtype == "bfloat16" else _FLOAT32
    rows = config.train.batch_size / config.train.accumulation / (mesh["slice"] * mesh["fsdp"])
    tokens, tensor = rows * data.slots / mesh["context"], mesh["tensor"]
    heads = decoder.heads * decoder.head_dim
    wide = (2 * heads + 2 * decoder.kv_heads * decoder.head_dim + 2 * decoder.mlp_width) / tensor
    pairs = rows * data.slots**2 / mesh["context"]
    scores = find(attention).score_bytes(pairs, decoder.heads / tensor, size)
    kept = {
        "full": tokens * decoder.width * size,
        "dots": tokens * (2 * decoder.width + wide) * size,
        "none": tokens * (4 * decoder.width + 3 * wide) * size + scores,
    }[decoder.remat]
    layer = tokens * (4 * decoder.width + 2 * wide) * size + 2 * scores
    logits = logit_rows(config, mesh) * vocabulary / tensor * 3 * _FLOAT32
    visual = rows * data.images_per_row * visual_tokens(config)[1] * decoder.width * 4 * _FLOAT32
    return kept * decoder.layers + max(layer, logits) + visual


def logit_rows(config: Config, mesh: dict[str, int]) -> int:
    """Slots whose logits a chip has to hold at a time: a chunk of each of its rows."""
    chunk = min(getattr(config.losses.get("text"), "chunk", 0) or config.data.slots, config.data.slots)
    return config.train.batch_size // config.train.accumulation // (mesh["slice"] * mesh["fsdp"]) * chunk


def traffic(config: Config, state: dict[str, int], mesh: dict[str, int], gradient: int = _FLOAT32) -> list[Collective]:
    """The least that chips have to send each other, in bytes that a chip receives a step.

    Along ``fsdp``: of what is trained, two gathers in the type of the products and one scatter of the gradients, of
    ``gradient`` bytes a number; of what is frozen, one gather as it is held, and two of a frozen decoder, through which
    gradients pass.
    """
    decoder = config.model.decoder
    size = _BFLOAT16 if decoder.dtype == "bfloat16" else _FLOAT32
    shards, passes = mesh["fsdp"], config.train.accumulation
    whole = state["trained_split_bytes"] / _FLOAT32 * (shards - 1)
    frozen = state["frozen_split_bytes"] * (shards - 1)
    frozen *= 2 if "decoder" in frozen_groups(config) else 1
    found = []
    if shards > 1:
        found += [
            Collective("all-gather", "fsdp", 2.0 * passes, passes * (2 * whole * size + frozen)),
            Collective("reduce-scatter", "fsdp", float(passes), passes * whole * gradient),
        ]
    if mesh["slice"] > 1:
        found.append(Collective("all-reduce", "slice", 1.0, 2 * state["trained_bytes"] * (1 - 1 / mesh["slice"])))
    tokens = config.train.batch_size * config.data.slots / (mesh["slice"] * mesh["fsdp"] * mesh["context"])
    if (parts := mesh["tensor"]) > 1:
        count = 4.0 * decoder.layers
        found.append(
            Collective("all-reduce", "tensor", count, count * 2 * tokens * decoder.width * size * (1 - 1 / parts))
        )
    if (parts := mesh["context"]) > 1:
        width = 2 * decoder.kv_heads * decoder.head_dim / mesh["tensor"]
        count = 3.0 * decoder.layers
        found.append(Collective("all-gather", "context", count, count * tokens * (parts - 1) * width * size))
    return found


def least_along_fsdp(config: Config, vocabulary: int, mesh: Any) -> dict[str, float]:
    """Bytes of ``traffic`` along ``fsdp`` alone, with gradients in ``float32`` and in ``bfloat16``.

    Args:
      config: of the run.
      vocabulary: token ids.
      mesh: real or abstract.
    """
    state, sizes = state_bytes(config, vocabulary, mesh), {"float32": _FLOAT32, "bfloat16": _BFLOAT16}
    found = {name: traffic(config, state, dict(mesh.shape), size) for name, size in sizes.items()}
    return {name: sum(entry.bytes for entry in sent if entry.axis == "fsdp") for name, sent in found.items()}


def answer(config: Config, vocabulary: int, hardware: Hardware) -> dict[str, Any]:
    """The keys of a compilation's answer, as far as formulas give them.

    Raises:
      UsageError: the mesh does not fit the number of chips, or does not divide what it has to.
    """
    from jax.sharding import AbstractMesh, AxisType

    from unihetero_jax.model.attention.base import chosen
    from unihetero_jax.parallel.mesh import AXES, mesh_sizes

    sizes = mesh_sizes(config.mesh, hardware.chips)
    mesh = AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    named = dict(zip(AXES, sizes, strict=True))
    state = state_bytes(config, vocabulary, mesh)
    attention = chosen(config, mesh, hardware.chip.platform)
    activations = activation_bytes(config, vocabulary, named, attention)
    decoder = config.model.decoder
    size = _BFLOAT16 if decoder.dtype == "bfloat16" else _FLOAT32
    # Two layers' weights are whole at once: one in use, one on its way. And every gradient, until the update.
    gathered = 2 * state["parameter_bytes"] / _FLOAT32 * size * named["fsdp"] / max(decoder.layers, 1)
    temporary = activations + state["trained_bytes"] + (gathered if named["fsdp"] > 1 else 0)
    reads = state["parameter_bytes"] * named["fsdp"] / _FLOAT32 * size * 3
    return {
        "mesh": named,
        "attention": attention,
        "parameter_bytes": state["parameter_bytes"],
        "optimizer_bytes": state["optimizer_bytes"],
        "batch_bytes": 0.0,
        "temporary_bytes": temporary,
        "output_bytes": 0.0,
        "program_bytes": 0.0,
        "hbm_traffic_bytes": reads + 3 * activations + 3 * (state["parameter_bytes"] + state["optimizer_bytes"]),
        "collectives": [vars(entry) for entry in traffic(config, state, named)],
        "compile_seconds": 0.0,
        "estimate": True,
    }
