"""Gather fully sharded weights where they are used, and scatter their gradients (ZeRO-3).

Without these constraints the compiler may split a product over the contracted axis instead and sum activations, gather
float32 where bfloat16 is multiplied, or keep whole weights for the backward pass. With them, a weight crosses the links
in the type of the products, once per use, and its gradient once (arXiv 1910.02054, section 5).

How a gradient is summed remains the compiler's choice. XLA for TPUs (libtpu 0.0.52) sums bfloat16 products before the
cast to float32. It has a reduce-scatter for some slice shapes (2x1x1 and 2x2x1 of v5p, 2x4, 1x8 and 8x16 of v5e, 2x4 of
v6e). For 2x2x2, 4x4x4 and 8x8x4 of v5p, 4x4 and 8x8 of v5e and 16x16 of v6e it emits an all-reduce and a slice of it
instead, however large a shard is, also for an explicit ``psum_scatter``: twice the traffic in half the bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unihetero_jax.parallel.mesh import RULES, MeshAxes, Rules

# The axis along which each device stores a part of a weight and uses all of it.
_SPLIT = "fsdp"
# XLA's CPU runtime orders independent collectives differently on each device (seen with jax 0.10.2): with these
# constraints, devices of a mesh of several axes deadlock. There the compiler decides.
_UNCONSTRAINED = ("cpu",)


def gathers(mesh: Mesh | None) -> bool:
    """Whether weights are split over devices that need all of them, and are gathered explicitly."""
    return mesh is not None and mesh.shape[_SPLIT] > 1 and mesh.devices.flat[0].platform not in _UNCONSTRAINED


def gathered(
    weight: jax.Array, axes: Sequence[str | None], mesh: Mesh | None, dtype: Any = None, rules: Rules = RULES
) -> jax.Array:
    """Gather a weight along ``fsdp``, leaving its split along other mesh axes; its gradient is scattered again.

    Args:
      weight: any array of parameters.
      axes: its logical axes.
      mesh: of the weight; where nothing is split, the weight is only cast.
      dtype: of the result; the weight's by default.
      rules: mesh axes of the logical ones.
    """
    dtype = weight.dtype if dtype is None else jnp.dtype(dtype)
    if mesh is None or not gathers(mesh):
        return weight.astype(dtype)
    split = NamedSharding(mesh, rules.spec(axes, weight.shape, mesh))
    whole = NamedSharding(mesh, PartitionSpec(*(_without(part) for part in split.spec)))
    if whole == split:
        return weight.astype(dtype)
    return _gather(weight, dtype.name, weight.dtype.name, split, whole)


def all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """Policy of ``jax.checkpoint`` that saves everything but gathered weights, which are gathered again.

    Sharding constraints of activations are recomputed too, which costs nothing: what they constrain is saved.
    """
    return primitive.name not in ("sharding_constraint", "custom_vjp_call")


def gathered_state(state: nnx.State, mesh: Mesh | None, dtype: Any) -> nnx.State:
    """Gather the parameters of one layer of a stack: matrices in ``dtype``, vectors in their own type."""
    if not gathers(mesh):
        return state

    def whole(variable: nnx.Variable) -> nnx.Variable:
        value, axes = variable.get_value(), variable.get_metadata().get("axes")
        if axes is None or len(axes) != value.ndim:
            return variable
        return variable.replace(gathered(value, axes, mesh, dtype if value.ndim > 1 else None))

    made: nnx.State = jax.tree.map(whole, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return made


def gather_singles(module: nnx.Module, mesh: Mesh | None, skip: Sequence[str] = ()) -> None:
    """Gather the parameters of a module that are not in a stack of layers, in place.

    Args:
      module: bound to parameters inside the function that is compiled.
      mesh: of the parameters.
      skip: dotted paths of parameters that are not gathered.
    """
    if not gathers(mesh):
        return
    for path, variable in nnx.iter_graph(module):
        if not isinstance(variable, nnx.Param) or ".".join(map(str, path)) in skip:
            continue
        value, axes = variable.get_value(), variable.get_metadata().get("axes")
        if axes is not None and len(axes) == value.ndim:
            variable.set_value(gathered(value, axes, mesh))


def _without(part: MeshAxes) -> MeshAxes:
    left = tuple(name for name in ((part,) if isinstance(part, str) else part or ()) if name != _SPLIT)
    return left[0] if len(left) == 1 else (left or None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(weight: jax.Array, dtype: str, stored: str, split: NamedSharding, whole: NamedSharding) -> jax.Array:
    del stored
    # Constrained before and after the cast, so that the narrower type crosses the links.
    narrow = jax.lax.with_sharding_constraint(weight.astype(dtype), split)
    return jax.lax.with_sharding_constraint(narrow, whole)


def _forward(
    weight: jax.Array, dtype: str, stored: str, split: NamedSharding, whole: NamedSharding
) -> tuple[jax.Array, None]:
    return _gather(weight, dtype, stored, split, whole), None


def _backward(
    dtype: str, stored: str, split: NamedSharding, whole: NamedSharding, residual: None, gradient: jax.Array
) -> tuple[jax.Array]:
    del dtype, whole, residual
    return (jax.lax.with_sharding_constraint(gradient.astype(stored), split),)


_gather.defvjp(_forward, _backward)
