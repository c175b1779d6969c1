"""Fully sharded weights made whole where they are used, and their gradients split again.

Left to itself, the compiler may split a product over the contracted axis instead and sum activations, gather float32
where bfloat16 is multiplied, or keep whole weights for the backward pass. Said here, a weight crosses the links in the
type of the products, once for each time it is used, and its gradient once (ZeRO stage 3, arXiv 1910.02054, section 5).

How a gradient is summed is still the compiler's choice. XLA for TPUs (libtpu 0.0.52) sums bfloat16 products before the
cast to float32. It has a reduce-scatter for some shapes of slices (2x1x1 and 2x2x1 of v5p, 2x4, 1x8 and 8x16 of v5e,
2x4 of v6e). For 2x2x2, 4x4x4 and 8x8x4 of v5p, 4x4 and 8x8 of v5e and 16x16 of v6e it writes a sum on every chip and a
slice of it instead, however large a shard is, and of an explicit ``psum_scatter``, too: twice the traffic in half the
bytes.
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

# The axis along which every device has a piece of each weight, and uses all of it.
_SPLIT = "fsdp"
# XLA's CPU runtime orders collectives that do not depend on each other anew on every device (seen with jax 0.10.2):
# with these, devices of a mesh of several axes wait for one another for ever. There the compiler is left to itself.
_LEFT_ALONE = ("cpu",)


def gathers(mesh: Mesh | None) -> bool:
    """Whether weights are split over devices that need all of them, and are gathered on purpose."""
    return mesh is not None and mesh.shape[_SPLIT] > 1 and mesh.devices.flat[0].platform not in _LEFT_ALONE


def gathered(
    weight: jax.Array, axes: Sequence[str | None], mesh: Mesh | None, dtype: Any = None, rules: Rules = RULES
) -> jax.Array:
    """A weight, whole along ``fsdp`` and split as ever along other mesh axes; its gradient comes back split.

    Args:
      weight: any array of parameters.
      axes: its logical axes.
      mesh: where it is; where nothing is split, the weight is only cast.
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
    """A policy of ``jax.checkpoint`` that keeps everything but whole weights; they are gathered again.

    Pins of activations are not kept either, and are done again for nothing: what they pin is kept.
    """
    return primitive.name not in ("sharding_constraint", "custom_vjp_call")


def gathered_state(state: nnx.State, mesh: Mesh | None, dtype: Any) -> nnx.State:
    """The parameters of one layer out of a stack, gathered: matrices in ``dtype``, vectors in their own type."""
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
    """Makes the parameters of a module that are no stack of layers whole, in place.

    Args:
      module: bound to parameters inside the function that is compiled.
      mesh: where they are.
      skip: dotted paths of those that are left alone.
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
def _gather(weight: jax.Array, dtype: str, held: str, split: NamedSharding, whole: NamedSharding) -> jax.Array:
    del held
    # Pinned before and after the cast, so that the narrower type is what travels.
    narrow = jax.lax.with_sharding_constraint(weight.astype(dtype), split)
    return jax.lax.with_sharding_constraint(narrow, whole)


def _forward(
    weight: jax.Array, dtype: str, held: str, split: NamedSharding, whole: NamedSharding
) -> tuple[jax.Array, None]:
    return _gather(weight, dtype, held, split, whole), None


def _backward(
    dtype: str, held: str, split: NamedSharding, whole: NamedSharding, residual: None, gradient: jax.Array
) -> tuple[jax.Array]:
    del dtype, whole, residual
    return (jax.lax.with_sharding_constraint(gradient.astype(held), split),)


_gather.defvjp(_forward, _backward)
