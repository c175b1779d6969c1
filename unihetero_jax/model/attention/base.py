"""Attention behind one function: packed causal attention, with grouped queries.

B rows, T query slots, S key slots, H query heads, G key/value heads, C head width.

Implementations are registered; each is a file of this folder, or a user's. ``auto`` takes the one of the mesh's
platform, which need not be here (``unihetero plan``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from unihetero_jax.config import Config
from unihetero_jax.config.components import ATTENTION, Part
from unihetero_jax.model.attention.common.blocks import BLOCK

# Name of a kernel's result, by which a checkpoint policy can save it instead of recomputing it.
RESIDUALS = "attention"

# What ``auto`` takes, by platform; elsewhere, and for rows that it cannot serve, XLA's.
_AUTOMATIC = {"tpu": "splash", "gpu": "cudnn", "cpu": "cpu"}
_PORTABLE = "xla"


class Packed(NamedTuple):
    """What the slots of packed rows may attend to: their own segment, up to themselves."""

    segment_BT: jax.Array


Readable = jax.Array | Packed


class Implementation:
    """The interface of attention implementations."""

    # Platforms that it is made for: elsewhere a kernel is interpreted, for tests, or does not run.
    platforms: ClassVar[tuple[str, ...]] = ("cpu", "gpu", "tpu")

    def refused(self, mesh: Any, slots: int, head_width: int, dtype: Any) -> str:
        """Return why packed rows of ``slots`` cannot be served; empty where they can."""
        del mesh, slots, head_width, dtype
        return ""

    def refused_split(self, mesh: Any) -> str:
        """Return the refusal of a sequence that is split over devices; empty where it is not."""
        split = 1 if mesh is None else mesh.shape["context"]
        return f"does not split a sequence over devices (config.mesh.context={split})" if split > 1 else ""

    def score_bytes(self, pairs: float, heads: float, size: int) -> float:
        """Return the bytes of scores of all pairs of slots that a layer has in memory.

        Args:
          pairs: of a query and a key slot.
          heads: of the queries.
          size: bytes of an activation.
        """
        return pairs * heads * (4 + size)

    def work(self, config: Config, forward: float, again: tuple[float, float], context: int) -> Part:
        """Count the FLOPs of a step: those of the model are the same for all, those of the program are not.

        Args:
          config: the run's configuration.
          forward: FLOPs of the forward pass that count: causal attention once.
          again: forward passes that the backward pass repeats: of matrix products, and of what is not one.
          context: devices that a row is split over.
        """
        del config, context
        return Part("decoder attention", forward, 2.0, again[1], 2.0)


class Masked(Implementation, ABC):
    """An implementation that is given a mask of all pairs of slots."""

    @abstractmethod
    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, mask_BTS: jax.Array) -> jax.Array:
        """Return [B, T, H, C] of queries [B, T, H, C], keys and values [B, S, G, C]; true where t may attend to s."""


class Kernel(Implementation, ABC):
    """An implementation for packed rows that reads segments and needs no mask."""

    def score_bytes(self, pairs: float, heads: float, size: int) -> float:
        """Return 0: scores are never stored."""
        del pairs, heads, size
        return 0.0

    def refused_blocks(self, mesh: Any, slots: int) -> str:
        """Return the refusal of rows whose part on a device is not whole blocks."""
        split = 1 if mesh is None else mesh.shape["context"]
        if slots % (split * BLOCK):
            return f"needs a multiple of {BLOCK} slots on each device; config.data.seq_len={slots} over {split}"
        return ""

    @abstractmethod
    def __call__(
        self,
        query_BTHC: jax.Array,
        key_BTGC: jax.Array,
        value_BTGC: jax.Array,
        segment_BT: jax.Array,
        mesh: Mesh | None,
        platform: str,
    ) -> jax.Array:
        """Return [B, T, H, C] of unscaled queries, keys, values and the slots' segments, split over the mesh."""


class _Function(Masked):
    """A plain function of (query, key, value, mask)."""

    def __init__(self, function: Callable[..., jax.Array]):
        self._function = function

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, mask_BTS: jax.Array) -> jax.Array:
        return self._function(query, key, value, mask_BTS)


def find(name: str) -> Implementation:
    """Return the implementation of a name; a plain function that is registered is given a mask.

    Raises:
      UsageError: there is none.
    """
    found = ATTENTION.find(name, "config.model.decoder.attention")
    return found if isinstance(found, Implementation) else _Function(found)


def packed_causal_mask(segment: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Return true where slot t may attend to slot s: the same segment, and not later in the row."""
    slots = segment.shape[1]
    same = segment[:, :, None] == segment[:, None, :]
    return same & jnp.tril(jnp.ones((slots, slots), bool))


def choose(implementation: str, mesh: Any, slots: int, head_width: int, dtype: Any, where: str = "") -> str:
    """Return the implementation for packed rows of ``slots``: the configured one, or with ``auto`` the platform's.

    Rows that it cannot serve are served by ``xla``: an evaluation's may have any length. ``refused`` gives the reason.

    Args:
      implementation: ``auto`` or the name of a registered one.
      mesh: of the arrays; an abstract one where ``where`` is given.
      slots: of a row.
      head_width: channels of a head.
      dtype: of the queries.
      where: the platform; that of the mesh's devices by default.

    Raises:
      UsageError: an unknown implementation.
    """
    name = implementation
    if name == "auto":
        name = _AUTOMATIC.get(where or platform(mesh), _PORTABLE)
    return _PORTABLE if find(name).refused(mesh, slots, head_width, dtype) else name


def chosen(config: Config, mesh: Any, where: str = "") -> str:
    """Return the implementation for the rows of a run's config."""
    decoder = config.model.decoder
    return choose(decoder.attention, mesh, config.data.seq_len, decoder.head_dim, decoder.dtype, where)


def refused(implementation: str, mesh: Any, slots: int, head_width: int, dtype: Any) -> str:
    """Return why packed rows of ``slots`` cannot be served by the implementation; empty where they can."""
    return "" if implementation == "auto" else find(implementation).refused(mesh, slots, head_width, dtype)


def native(mesh: Mesh, slots: int, head_width: int, dtype: Any) -> list[str]:
    """Return the implementations that are made for a mesh's platform and serve rows of ``slots``; first ``auto``'s."""
    here = platform(mesh)
    found = [name for name in ATTENTION.kinds() if here in find(name).platforms]
    found = [name for name in found if not find(name).refused(mesh, slots, head_width, dtype)]
    automatic = choose("auto", mesh, slots, head_width, dtype)
    return sorted(found, key=lambda name: name != automatic)


def platform(mesh: Mesh | None) -> str:
    """Return ``cpu``, ``gpu`` or ``tpu``: that of a mesh's devices; without a mesh, of the local devices."""
    name: str = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def attention(
    query_BTHC: Float[Array, "B T H C"],
    key_BSGC: Float[Array, "B S G C"],
    value_BSGC: Float[Array, "B S G C"],
    readable: Readable,
    implementation: str = "auto",
    mesh: Mesh | None = None,
) -> Float[Array, "B T H C"]:
    """Compute attention with a float32 softmax; query head h attends to key head h // (H / G).

    Args:
      query_BTHC: queries.
      key_BSGC: keys; G divides H.
      value_BSGC: values.
      readable: a mask [B, T, S], true where slot t may attend to slot s; or ``Packed``, where S is T. A kernel is for
        packed rows: with a mask in its place, ``xla`` serves.
      implementation: ``auto`` or the name of a registered one.
      mesh: that the arrays are split over; the kernels run on each device's part.

    Raises:
      UsageError: an unknown implementation.
    """
    if isinstance(readable, Packed):
        slots, width = query_BTHC.shape[1], query_BTHC.shape[3]
        found = find(choose(implementation, mesh, slots, width, query_BTHC.dtype))
        if isinstance(found, Kernel):
            return found(query_BTHC, key_BSGC, value_BSGC, readable.segment_BT, mesh, platform(mesh))
        readable = packed_causal_mask(readable.segment_BT)
    else:
        found = find(_PORTABLE if implementation in ("auto", *_AUTOMATIC.values()) else implementation)
        if isinstance(found, Kernel):
            found = find(_PORTABLE)
    assert isinstance(found, Masked)
    return found(query_BTHC, key_BSGC, value_BSGC, readable)


def prepared(
    readable: Readable, implementation: str, mesh: Mesh | None, slots: int, width: int, dtype: Any
) -> Readable:
    """Return ``readable`` as all layers can use it: a mask is made once, unless a kernel needs none."""
    if not isinstance(readable, Packed) or isinstance(find(choose(implementation, mesh, slots, width, dtype)), Kernel):
        return readable
    return packed_causal_mask(readable.segment_BT)
