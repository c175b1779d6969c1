"""LoRA: low-rank updates of linear maps that stay as they are (arXiv 2106.09685).

A linear x·W becomes x·W + (α / r) · dropout(x)·A·B, with A [in, r] uniform in ±1/√in and B [r, out] zero, so that
training starts at the base exactly. Factors live beside the model's own parameters, under ``lora`` and the path of
their linear, so that the base keeps its names and ``merge`` is a sum.

The update is computed from activations, never as W + ΔW. For n tokens it costs 2·n·r·(in + out) FLOPs forward and twice
that backward, and no gradient of the size of W exists; ΔW would cost 2·r·in·out forward, but 2·n·in·out backward for
the very gradient that LoRA is there to avoid. With many tokens activations are cheaper where 3·r·(in + out) < in·out
(width 4,096, r 128: by a factor of five); at widths below about 6·r they are not, but dropout on x can only be had this
way.

L layers of a stack, r rank.
"""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from unihetero_jax.config import LoraConfig
from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.model.groups import group_of
from unihetero_jax.parallel.initial_values import key_of
from unihetero_jax.parallel.mesh import Rules
from unihetero_jax.parallel.parameter_paths import Params, Path, dotted

LORA = "lora"

# Adapters and heads are trained in full; factors beside them would learn the same thing twice.
_GROUPS = ("decoder", "towers")


@dataclass(frozen=True)
class Target:
    """A linear that gets factors: its path; sizes and logical axes of its input and output; [L] of a stack, or []."""

    path: Path
    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes_in: tuple[str | None, ...]
    axes_out: tuple[str | None, ...]


def linears(model: nnx.Module) -> list[Target]:
    """List every linear of the model's decoder and towers, stacked ones as one."""
    found = []
    for keys, module in nnx.iter_modules(model):
        path: Path = tuple(key if isinstance(key, int) else str(key) for key in keys)
        if not isinstance(module, nnx.Linear | nnx.LinearGeneral) or group_of(path) not in _GROUPS:
            continue
        shape = module.kernel.get_value().shape
        # A user's tower may have linears without logical axes.
        axes = module.kernel.get_metadata().get("axes", (None,) * len(shape))
        count = 1 if isinstance(module, nnx.Linear) else len(module.in_features)
        if len(axes) < len(shape):
            stack, shape = shape[: len(shape) - len(axes)], shape[len(shape) - len(axes) :]
        else:
            stack = ()
        found.append(Target(path, stack, shape[:count], shape[count:], axes[:count], axes[count:]))
    return sorted(found, key=lambda target: dotted(target.path))


def find_targets(model: nnx.Module, config: LoraConfig) -> tuple[Target, ...]:
    """Return the linears that the patterns of ``config.targets`` match; ``*`` matches dots too.

    Raises:
      UsageError: a pattern that matches nothing, with the nearest names.
    """
    known = {dotted(target.path): target for target in linears(model)}
    chosen: dict[str, Target] = {}
    for pattern in filter(None, (part.strip() for part in config.targets.split(","))):
        matched = fnmatch.filter(known, pattern)
        if not matched:
            raise UsageError(
                f"config.model.lora.targets: {pattern!r} matches no linear{nearest(pattern, known)}; there are "
                f"{', '.join(known)}"
            )
        chosen |= {name: known[name] for name in matched}
    if not chosen:
        raise UsageError("config.model.lora.targets is empty; expected patterns such as 'decoder.layers.*'")
    return tuple(chosen[name] for name in sorted(chosen))


def shapes(targets: tuple[Target, ...], rank: int) -> Params:
    """Return the shape of each factor: nested dicts by path, then ``a`` [L, in…, r] and ``b`` [L, r, out…], float32."""

    def pair(target: Target) -> Params:
        return {
            "a": jax.ShapeDtypeStruct((*target.stack, *target.inputs, rank), jnp.float32),
            "b": jax.ShapeDtypeStruct((*target.stack, rank, *target.outputs), jnp.float32),
        }

    return _nested({target.path: pair(target) for target in targets})


def init(targets: tuple[Target, ...], rank: int, key: jax.Array) -> Params:
    """Initialize the factors, each from the model's key and its own path."""

    def pair(target: Target) -> Params:
        bound = 1.0 / math.prod(target.inputs) ** 0.5
        shape = (*target.stack, *target.inputs, rank)
        return {
            "a": jax.random.uniform(key_of(key, (LORA, *target.path, "a")), shape, jnp.float32, -bound, bound),
            "b": jnp.zeros((*target.stack, rank, *target.outputs), jnp.float32),
        }

    return _nested({target.path: pair(target) for target in targets})


def shardings(targets: tuple[Target, ...], rank: int, mesh: Mesh, rules: Rules) -> Params:
    """Return the shardings of the factors: split as their kernel is.

    Of a kernel that is split over two mesh axes, each factor has but one side. The rank is split over the axis that is
    left, so that no factor is whole on every device.
    """

    def spec(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, rules.spec(axes, shape, mesh))

    def pair(target: Target) -> Params:
        stack = ("layers",) * len(target.stack)
        left, right = _rank_axis(target.axes_in, rules), _rank_axis(target.axes_out, rules)
        return {
            "a": spec((*stack, *target.axes_in, left), (*target.stack, *target.inputs, rank)),
            "b": spec((*stack, right, *target.axes_out), (*target.stack, rank, *target.outputs)),
        }

    return _nested({target.path: pair(target) for target in targets})


def _rank_axis(axes: tuple[str | None, ...], rules: Rules) -> str | None:
    taken = {getattr(rules, axis) for axis in axes if axis is not None}
    return None if rules.rank in taken else "rank"


class Adapted(nnx.Module):
    """A linear and its factors, called as the linear is.

    Args:
      base: the linear, alone or a stack of layers.
      factors: ``a`` and ``b``.
      config: rank, α and dropout.
      key: for dropout, one per layer of the stack; None: no dropout.
    """

    def __init__(self, base: Any, factors: Params, config: LoraConfig, key: jax.Array | None):
        self.base = base
        self.a = nnx.Param(factors["a"])
        self.b = nnx.Param(factors["b"])
        self.config = config
        self.key = nnx.data(None) if key is None else nnx.Variable(key)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the base's output plus its low-rank update."""
        out = self.base(x)
        return out + self.update(x.astype(out.dtype))

    def update(self, x: jax.Array) -> jax.Array:
        """Return the low-rank update alone, in the type of x."""
        count = 1 if isinstance(self.base, nnx.Linear) else len(self.base.in_features)
        a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
        if self.key is not None:
            keep = 1.0 - self.config.dropout
            x = jnp.where(jax.random.bernoulli(self.key[...], keep, x.shape), x / keep, 0.0).astype(x.dtype)
        low = jnp.tensordot(x, a, count) * (self.config.alpha / self.config.rank)
        return jnp.tensordot(low, b, 1)


def adapt(
    model: nnx.Module,
    targets: tuple[Target, ...],
    factors: Params,
    config: LoraConfig,
    dropout_key: jax.Array | None = None,
) -> None:
    """Put the factors beside their linears in a model.

    A layer's dropout key is part of the stack, so that the scan over layers hands each its own.

    Args:
      model: changed in place.
      targets: which linears.
      factors: nested dicts as ``init`` makes them.
      config: rank, α and dropout.
      dropout_key: for dropout; none without it.
    """
    for target in targets:
        parent: Any = model
        pair = factors
        for name in target.path[:-1]:
            parent, pair = _child(parent, name), pair[name]
        key = None
        if dropout_key is not None and config.dropout:
            key = key_of(dropout_key, target.path)
            key = jax.random.split(key, target.stack) if target.stack else key
        name = target.path[-1]
        adapted = Adapted(_child(parent, name), pair[name], config, key)
        if isinstance(name, int):
            parent[name] = adapted
        else:
            setattr(parent, name, adapted)


def _child(parent: Any, name: str | int) -> Any:
    return parent[name] if isinstance(name, int) else getattr(parent, name)


def merge(params: Params, config: LoraConfig) -> Params:
    """Return the parameters of the equivalent plain model: each kernel with its update added, in float32."""

    def add(tree: Params, factors: Params) -> Params:
        if set(factors) == {"a", "b"} and not isinstance(factors["a"], dict):
            return {**tree, "kernel": _sum(tree["kernel"], factors["a"], factors["b"], config)}
        return {**tree, **{name: add(tree[name], below) for name, below in factors.items()}}

    plain = {name: value for name, value in params.items() if name != LORA}
    return add(plain, params.get(LORA, {}))


def _sum(kernel: jax.Array, a: jax.Array, b: jax.Array, config: LoraConfig) -> jax.Array:
    stack = kernel.shape[: a.ndim + b.ndim - 2 - kernel.ndim]
    rank = a.shape[-1]
    left, right = a.reshape(*stack, -1, rank), b.reshape(*stack, rank, -1)
    update = jnp.matmul(left, right, precision="highest").reshape(kernel.shape)
    return kernel.astype(jnp.float32) + (config.alpha / config.rank) * update


def _nested(flat: dict[Path, Params]) -> Params:
    tree: Params = {}
    for path, value in flat.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = value
    return tree
