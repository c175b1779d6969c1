"""Initial parameters from (key, path) alone, for any Flax NNX module.

A module draws its parameters one after another from ``nnx.Rngs``, which counts the draws: add, remove or move one
parameter, and all later ones start differently. Two arms of an experiment would then start from different points
although they have the same seed. So the module is traced once here, with streams that do not count, and each
parameter is computed from the operations that it depends on, with its own key. Modules need not be aware of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend import core

from unihetero_jax.parallel.parameter_paths import Path, dotted


def key_of(key: jax.Array, path: Path) -> jax.Array:
    """Return the key of the parameter at a path."""
    return jax.random.fold_in(key, zlib.crc32(dotted(path).encode()))


def initial_values(create: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> dict[str, Any]:
    """Initialize the parameters of a module, each a function of the key, its path and its initializer; pure.

    In a stack of layers (``nnx.vmap`` over ``nnx.split_rngs``), each layer's part has its own key. A parameter
    that the constructor computes from another one is not a copy of it: each is drawn with its own key.

    Args:
      create: builds the module.
      key: of all its parameters.

    Returns:
      Nested dicts of arrays.
    """

    def params(key: jax.Array) -> dict[str, Any]:
        return nnx.to_pure_dict(nnx.state(create(_Rngs(key)), nnx.Param))

    traced, shapes = jax.make_jaxpr(params, return_shape=True)(key)
    paths, tree = jax.tree.flatten_with_path(shapes)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    # ``key_of`` each path; a single operation compiles faster.
    hashes = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)
    parts = _slices(traced)
    return jax.tree.unflatten(tree, [core.jaxpr_as_fun(part)(keys[i])[0] for i, part in enumerate(parts)])


def _drawn_for_a_parameter(key: jax.Array, number: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, number)


# Jitted only so that its name marks the draws in the trace, also under ``jax.vmap``.
_draw = jax.jit(_drawn_for_a_parameter)


class _Stream(nnx.RngStream):
    """A stream whose draws are numbered afterwards, from zero for each parameter."""

    def __call__(self) -> jax.Array:
        return _draw(self.key[...], np.uint32(0))


class _Rngs(nnx.Rngs):
    """``nnx.Rngs`` of such streams; splitting it gives the same type."""

    def __init__(self, default: Any = None, **streams: Any):
        super().__init__(default, **streams)
        for name, stream in list(self.items()):
            setattr(self, name, _Stream(stream.key[...], tag=stream.tag))

    def split(self, k: Any) -> nnx.Rngs:
        return _Rngs(**dict(super().split(k).items()))

    def broadcast(self, k: Any) -> nnx.Rngs:
        return _Rngs(**dict(super().broadcast(k).items()))

    def fork(self, /, **options: Any) -> nnx.Rngs:
        return _Rngs(**dict(super().fork(**options).items()))


def _slices(traced: core.ClosedJaxpr) -> list[core.ClosedJaxpr]:
    """Return, for each output, the program that computes only that output, with its draws numbered."""
    jaxpr = traced.jaxpr
    maker = {var: number for number, eqn in enumerate(jaxpr.eqns) for var in eqn.outvars}

    def part(output: Any) -> core.ClosedJaxpr:
        needed: set[int] = set()
        left = [output]
        while left:
            var = left.pop()
            number = None if isinstance(var, core.Literal) else maker.get(var)
            if number is not None and number not in needed:
                needed.add(number)
                left.extend(jaxpr.eqns[number].invars)
        eqns = _numbered([jaxpr.eqns[number] for number in sorted(needed)])
        return core.ClosedJaxpr(jaxpr.replace(eqns=eqns, outvars=[output]), traced.consts)

    return [part(output) for output in jaxpr.outvars]


def _numbered(eqns: Sequence[core.JaxprEqn]) -> list[core.JaxprEqn]:
    """Number the draws, so that a parameter of two draws does not get the same numbers twice."""
    found, draws = [], 0
    for eqn in eqns:
        if eqn.params.get("name") == _drawn_for_a_parameter.__name__:
            key, number = eqn.invars
            eqn = eqn.replace(invars=[key, core.Literal(np.uint32(draws), number.aval)])
            draws += 1
        found.append(eqn)
    return found
