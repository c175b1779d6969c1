"""Attention behind one function: packed causal attention, with grouped queries.

B rows, T query slots, S key slots, H query heads, G key/value heads, C head width.

| implementation | where | what |
|---|---|---|
| ``xla`` | everywhere | ``jax.nn.dot_product_attention``: scores of all pairs of slots in memory |
| ``splash`` | TPU | JAX's Pallas kernel: no scores in memory, blocks above the diagonal are skipped |
| ``cudnn`` | NVIDIA GPU, 16-bit | ``jax.nn.dot_product_attention`` by cuDNN: no scores in memory, the mask is |
| ``triton`` | NVIDIA GPU | JAX's Pallas kernel: neither scores nor mask in memory; does not split a sequence |
| ``reference`` | everywhere | the formula written out, against which the others are tested |

``auto`` takes the fastest that can be had for the devices of the mesh, which need not be here (``unihetero plan``).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from unihetero_jax.model.attention.blocks import BLOCK

Implementation = Literal["xla", "splash", "cudnn", "triton", "reference"]

# Name of what a kernel gives, by which a checkpoint policy can keep it, so that it is not computed again.
RESIDUALS = "attention"


class Packed(NamedTuple):
    """What the slots of packed rows may read: their own segment, as far as themselves."""

    segment_BT: jax.Array


Readable = jax.Array | Packed


def packed_causal_mask(segment: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """True where slot t may read slot s: the same segment, and not later in the row."""
    slots = segment.shape[1]
    same = segment[:, :, None] == segment[:, None, :]
    return same & jnp.tril(jnp.ones((slots, slots), bool))


def choose(implementation: str, mesh: Any, slots: int, head_width: int, dtype: Any, where: str = "") -> Implementation:
    """The implementation for packed rows of ``slots``: what is asked for, or with ``auto`` the fastest of the platform.

    Rows that it cannot serve are served by ``xla``: an evaluation's may have any length. ``refused`` says why.

    Args:
      implementation: ``auto`` or a name of the table above.
      mesh: of the arrays; an abstract one where ``where`` is given.
      slots: of a row.
      head_width: channels of a head.
      dtype: of the queries.
      where: the platform; that of the mesh's devices by default.

    Raises:
      ValueError: an unknown implementation.
    """
    name = implementation
    if name == "auto":
        name = {"tpu": "splash", "gpu": "cudnn"}.get(where or platform(mesh), "xla")
    if name not in get_args(Implementation):
        raise ValueError(
            f"unknown attention implementation {name!r}; expected auto, {', '.join(get_args(Implementation))}"
        )
    chosen: Implementation = "xla" if refused(name, mesh, slots, head_width, dtype) else name  # type: ignore[assignment]
    return chosen


def chosen(config: Any, mesh: Any, where: str = "") -> Implementation:
    """What ``choose`` takes for the rows of a run's config."""
    decoder = config.model.decoder
    return choose(decoder.attention, mesh, config.data.slots, decoder.head_dim, decoder.dtype, where)


def refused(implementation: str, mesh: Any, slots: int, head_width: int, dtype: Any) -> str:
    """Why packed rows of ``slots`` cannot be served; empty where they can."""
    split = 1 if mesh is None else mesh.shape["context"]
    if implementation in ("splash", "triton") and slots % (split * BLOCK):
        return f"needs a multiple of {BLOCK} slots on each device; config.data.slots={slots} over {split}"
    if implementation in ("cudnn", "triton") and split > 1:
        return f"does not split a sequence over devices (config.mesh.context={split})"
    if implementation == "cudnn":
        if jnp.dtype(dtype).itemsize != 2:
            return f"needs 16-bit activations; config.model.decoder.dtype={jnp.dtype(dtype).name!r}"
        if head_width % 8 or head_width > 128:
            return f"needs heads of a multiple of 8 channels, at most 128; config.model.decoder has {head_width}"
        if slots % 64:
            return f"needs a multiple of 64 slots; config.data.slots={slots}"
    return ""


def platform(mesh: Mesh | None) -> str:
    """``cpu``, ``gpu`` or ``tpu``: of a mesh's devices, without one of those that are here."""
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
    """Softmax attention with float32 softmax; query head h reads key head h // (H / G).

    Args:
      query_BTHC: queries.
      key_BSGC: keys; G divides H.
      value_BSGC: values.
      readable: a mask [B, T, S], true where slot t may read slot s; or ``Packed``, where S is T. A mask is served by
        ``xla``, unless ``reference`` is asked for: the kernels are for packed rows.
      implementation: ``auto`` or a name of the table above.
      mesh: that the arrays are split over; the kernels run on each device's part.

    Raises:
      ValueError: an unknown implementation.
    """
    if not isinstance(readable, Packed):
        if implementation == "reference":
            return _reference(query_BTHC, key_BSGC, value_BSGC, readable)
        return _by_jax(query_BTHC, key_BSGC, value_BSGC, readable, "xla")
    slots, width = query_BTHC.shape[1], query_BTHC.shape[3]
    chosen = choose(implementation, mesh, slots, width, query_BTHC.dtype)
    if chosen in ("splash", "triton"):
        # Not imported above: Pallas takes a second, and most runs on CPU have no use for it.
        from unihetero_jax.model.attention import kernels as attention_kernels

        kernel = attention_kernels.splash if chosen == "splash" else attention_kernels.triton
        return kernel(query_BTHC, key_BSGC, value_BSGC, readable.segment_BT, mesh, platform(mesh))
    mask_BTS = packed_causal_mask(readable.segment_BT)
    if chosen == "reference":
        return _reference(query_BTHC, key_BSGC, value_BSGC, mask_BTS)
    return _by_jax(query_BTHC, key_BSGC, value_BSGC, mask_BTS, "cudnn" if chosen == "cudnn" else "xla")


def prepared(
    readable: Readable, implementation: str, mesh: Mesh | None, slots: int, width: int, dtype: Any
) -> Readable:
    """``readable`` as all layers can use it: a mask is made once, unless a kernel does without."""
    if not isinstance(readable, Packed) or choose(implementation, mesh, slots, width, dtype) not in (
        "xla",
        "reference",
    ):
        return readable
    return packed_causal_mask(readable.segment_BT)


def _by_jax(
    query: jax.Array, key: jax.Array, value: jax.Array, mask_BTS: jax.Array, implementation: Literal["xla", "cudnn"]
) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, mask=mask_BTS[:, None], implementation=implementation)


def _reference(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    rows, slots, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(rows, slots, groups, heads // groups, width)
    scores = jnp.einsum("btgrc,bsgc->bgrts", grouped, key, preferred_element_type=jnp.float32) / width**0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bgrts,bsgc->btgrc", weights, value).reshape(rows, slots, heads, width)
