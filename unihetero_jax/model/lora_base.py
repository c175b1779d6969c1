"""The frozen base of a LoRA run: its source, and the digest that identifies it.

A LoRA checkpoint's ``state`` holds the factors, what else is trained and its optimizer state, but not the base. That is
rebuilt from its source, which the checkpoint names in its ``base`` item beside a digest of the numbers; another base is
refused. A base that is initialized from a seed is the same only for one jax release, kind of device and set of compiler
options; one that matters comes from a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from unihetero_jax.config import TOWER_NAMES, Config
from unihetero_jax.errors import UsageError
from unihetero_jax.model import groups
from unihetero_jax.parallel import parameter_paths
from unihetero_jax.parallel.module_definition import ModelDefinition, Params

_SALTS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


def initial_params(config: Config, model: ModelDefinition) -> Params:
    """Return the parameters before the first step, as training stores them; pure in the config's seed."""
    key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
    return groups.as_stored(config, model.init(key))


def identify(config: Config, params: Params) -> dict[str, str] | None:
    """Return ``source`` and ``digest`` of the base in these parameters; None without LoRA, which leaves nothing out."""
    if not config.model.lora.rank:
        return None
    source = f"config.train.seed={config.train.seed}"
    init = config.init
    given = [f"config.init.{name}={getattr(init, name)}" for name in ("path", *TOWER_NAMES) if getattr(init, name)]
    if given:
        source = f"{', '.join(given)} ({init.parts}), the rest from {source}"
    return {"source": source, "digest": digest(groups.split(config, params)[1])}


def with_base(
    config: Config,
    model: ModelDefinition,
    mesh: Mesh,
    trained: Params,
    stored: Mapping[str, str],
    path: Path,
    start: Callable[[Params], Params] | None = None,
) -> Params:
    """Return all parameters, given the trained ones of a LoRA checkpoint.

    Args:
      config: the run's configuration.
      model: its definition.
      mesh: where the base is placed.
      trained: the checkpoint's parameters.
      stored: ``source`` and ``digest`` of the checkpoint's base.
      path: the checkpoint.
      start: replaces parameters by those that ``config.init`` names, where the run started from weights.

    Raises:
      UsageError: the base that is made here is another one.
    """
    if start is None:
        places = groups.split(config, model.shardings(mesh))[1]
        base = jax.jit(lambda: groups.split(config, initial_params(config, model))[1], out_shardings=places)()
    else:
        made = jax.jit(lambda: initial_params(config, model), out_shardings=model.shardings(mesh))()
        base = groups.split(config, start(made))[1]
    params = parameter_paths.join(base, trained)
    found = identify(config, params) or {}
    if dict(stored) != found:
        raise UsageError(
            f"{path}: its LoRA factors were trained on the base {_name(stored)} and do not fit the one that is made "
            f"here, {_name(found)}"
        )
    return params


def _name(base: Mapping[str, str]) -> str:
    return f"{base.get('source', 'unknown')} (digest {base.get('digest', 'unknown')[:16]})"


def digest(params: Params) -> str:
    """Return a hexadecimal digest of names, shapes, types and numbers, however the arrays are split over devices.

    Each array is reduced where it lies to sums, modulo 2³², of a hash of every number's bits with its index: sums of
    integers are the same in any order, and nothing is gathered or copied. It identifies a base; it does not
    protect against forgery.
    """
    total = hashlib.sha256()
    arrays, found = jax.tree.leaves_with_path(params), jax.tree.leaves(jax.device_get(_sums(params)))
    for (path, leaf), sums in zip(arrays, found, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        total.update(f"{name} {leaf.shape} {leaf.dtype} {np.asarray(sums).tobytes().hex()}\n".encode())
    return total.hexdigest()


@jax.jit
def _sums(params: Params) -> Params:
    def sums(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
        index = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        return jnp.stack([jnp.sum(_mix(bits ^ _mix(index + jnp.uint32(salt))), dtype=jnp.uint32) for salt in _SALTS])

    return jax.tree.map(sums, params)


def _mix(x: jax.Array) -> jax.Array:
    """Mix bits so that each bit of the result depends on every bit of ``x`` (the finalizer of MurmurHash3, 32 bits)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
