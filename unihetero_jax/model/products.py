"""Linear maps in the forms that XLA's CPU library computes fast; on other devices as they are.

N tokens, I inputs, O outputs, F hidden width of an MLP.

On one CPU device linears of the same input are one product, and products of bfloat16 have a float32 result: rounding it
afterwards takes a third of the time of a product with a bfloat16 result. The library knows that form only of plain
[N, I] · [I, O], so that what is transposed is laid out first. Backward passes are written out, because autodiff pads
and adds where gradients could be laid side by side, and rounds every step of an elementwise function.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.model.attention.base import platform

_LINEAR = (nnx.Linear, nnx.LinearGeneral)


def on_one_cpu(mesh: Mesh | None) -> bool:
    """Return whether arrays on the mesh are on one CPU device."""
    return platform(mesh) == "cpu" and (mesh is None or mesh.size == 1)


def linears(modules: Sequence[Any], x: jax.Array, mesh: Mesh | None) -> list[jax.Array]:
    """Apply linears to the same input.

    Args:
      modules: ``nnx.Linear`` and ``nnx.LinearGeneral``, or what is called like them; one with a ``base`` of these and
        an ``update`` (LoRA) gives base(x) + update(x).
      x: [..., I…], of their dtype.
      mesh: that x is split over.

    Returns:
      [..., O…] of each.
    """
    bases = [getattr(module, "base", module) for module in modules]
    if not on_one_cpu(mesh) or not all(isinstance(base, _LINEAR) for base in bases):
        return [module(x) for module in modules]
    kernels = [_matrix(base, x.dtype) for base in bases]
    before = x.shape[: x.ndim - _inputs(bases[0])]
    made = products(x.reshape(-1, kernels[0].shape[0]), kernels, x.dtype)
    results = []
    for module, base, part in zip(modules, bases, made, strict=True):
        part = part.reshape(*before, *_outputs(base))
        part = part if base.bias is None else part + base.bias[...].astype(x.dtype)
        results.append(part if module is base else part + module.update(x))
    return results


def swiglu(gate: Any, up: Any, down: Any, x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Return down(silu(gate(x)) · up(x)) of three linears (arXiv 2002.05202, section 2).

    Args:
      gate: a linear without bias, as are the others.
      up: of the same shape.
      down: back to the width of x.
      x: [..., D].
      mesh: that x is split over.
    """
    if not on_one_cpu(mesh) or not all(isinstance(module, _LINEAR) for module in (gate, up, down)):
        opened, plain = linears((gate, up), x, mesh)
        return linears((down,), jax.nn.silu(opened) * plain, mesh)[0]
    kernels = [_matrix(module, x.dtype) for module in (gate, up, down)]
    return _swiglu(x.reshape(-1, x.shape[-1]), *kernels).reshape(x.shape)


def _outputs(module: Any) -> tuple[int, ...]:
    features = module.out_features
    return (features,) if isinstance(features, int) else tuple(features)


def _inputs(module: Any) -> int:
    return module.kernel[...].ndim - len(_outputs(module))


def _matrix(module: Any, dtype: Any) -> jax.Array:
    """Return the kernel as [I, O]."""
    kernel = module.kernel[...].astype(dtype)
    return kernel.reshape(math.prod(kernel.shape[: _inputs(module)]), -1)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _of_input(gradient_NO: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    return jax.lax.dot_general(gradient_NO, kernel_IO, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _of_kernel(x_NI: jax.Array, gradient_NO: jax.Array) -> jax.Array:
    x_IN = x_NI.T
    if x_NI.dtype == jnp.bfloat16:
        # As one axis behind a barrier: otherwise XLA hands the product a transposed factor after all.
        x_IN = jax.lax.optimization_barrier(x_IN.reshape(-1)).reshape(x_IN.shape)
    return _product(x_IN, gradient_NO).astype(x_NI.dtype)


def _beside(arrays: Sequence[jax.Array]) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=1)


def _apart(x: jax.Array, kernels_IO: Sequence[jax.Array]) -> list[jax.Array]:
    """Split the last axis into the kernels' outputs."""
    ends = list(itertools.accumulate(kernel.shape[1] for kernel in kernels_IO))
    return jnp.split(x, ends[:-1], axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def products(x_NI: jax.Array, kernels_IO: Sequence[jax.Array], dtype: Any) -> list[jax.Array]:
    """Return x · kernel as ``dtype`` for each kernel, on one CPU device; all factors are of one type."""
    return _apart(_product(x_NI, _beside(kernels_IO)).astype(dtype), kernels_IO)


def _products_forward(x_NI: jax.Array, kernels_IO: Sequence[jax.Array], dtype: Any) -> tuple[list[jax.Array], Any]:
    return products(x_NI, kernels_IO, dtype), (x_NI, kernels_IO)


def _products_backward(dtype: Any, residuals: Any, gradients: Sequence[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    del dtype
    x_NI, kernels_IO = residuals
    gradient = _beside([gradient.astype(x_NI.dtype) for gradient in gradients])
    of_x = _of_input(gradient, _beside(kernels_IO)).astype(x_NI.dtype)
    return of_x, _apart(_of_kernel(x_NI, gradient), kernels_IO)


products.defvjp(_products_forward, _products_backward)


@jax.custom_vjp
def _swiglu(x_ND: jax.Array, gate_DF: jax.Array, up_DF: jax.Array, down_FD: jax.Array) -> jax.Array:
    return _swiglu_forward(x_ND, gate_DF, up_DF, down_FD)[0]


def _swiglu_forward(x_ND: jax.Array, gate_DF: jax.Array, up_DF: jax.Array, down_FD: jax.Array) -> tuple[jax.Array, Any]:
    dtype = x_ND.dtype
    first_DG = _beside([gate_DF, up_DF])
    both = _product(x_ND, first_DG)
    gate, up = jnp.split(both, 2, axis=1)
    hidden_NF = (jax.nn.silu(gate) * up).astype(dtype)
    return _product(hidden_NF, down_FD).astype(dtype), (x_ND, first_DG, down_FD, both.astype(dtype), hidden_NF)


def _swiglu_backward(residuals: Any, gradient_ND: jax.Array) -> tuple[jax.Array, ...]:
    x_ND, first_DG, down_FD, both, hidden_NF = residuals
    gate, up = (part.astype(jnp.float32) for part in jnp.split(both, 2, axis=1))
    of_hidden = _of_input(gradient_ND, down_FD)
    open_ = jax.nn.sigmoid(gate)
    of_up = of_hidden * gate * open_
    of_gate = of_hidden * up * open_ * (1.0 + gate * (1.0 - open_))
    of_both = jnp.concatenate([of_gate.astype(x_ND.dtype), of_up.astype(x_ND.dtype)], axis=1)
    of_x = _of_input(of_both, first_DG).astype(x_ND.dtype)
    return of_x, *jnp.split(_of_kernel(x_ND, of_both), 2, axis=1), _of_kernel(hidden_NF, gradient_ND)


_swiglu.defvjp(_swiglu_forward, _swiglu_backward)
