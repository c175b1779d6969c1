"""A step's memory and traffic without compiling it, for GPUs and to choose what a search compiles."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from unihetero_jax.config import Config, MeshConfig, resolve
from unihetero_jax.model.attention.dispatch import chosen
from unihetero_jax.parallel.mesh import AXES, check_mesh, mesh_sizes
from unihetero_jax.plan.formulas import BFLOAT16_BYTES, FLOAT32_BYTES, activation_bytes, product_bytes, traffic
from unihetero_jax.plan.hardware import Hardware
from unihetero_jax.plan.lowering import abstract_state, bytes_per_chip


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
    weights = state["parameter_bytes"] / FLOAT32_BYTES * product_bytes(config.model.decoder) * named["fsdp"]
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
    check_mesh(mesh, config)
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
        for name, size in (("float32", FLOAT32_BYTES), ("bfloat16", BFLOAT16_BYTES))
    }
