"""The text model: a pre-norm decoder with rotary positions, grouped-query attention and SwiGLU, layers scanned.

B rows, T slots, S cached slots, L layers, D width, H query heads, G key/value heads, C head width, V vocabulary.

Parameters carry their logical axes as metadata (``axes``); ``parallel.mesh`` maps them to the mesh. The layers are one
stack, [L, …], so that compile time does not grow with depth.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from unihetero_jax.config import DecoderConfig, RopeScalingConfig, table_rows
from unihetero_jax.model.attention.base import RESIDUALS, Readable, attention, prepared
from unihetero_jax.model.products import linears, on_one_cpu, products, swiglu
from unihetero_jax.parallel import initializers
from unihetero_jax.parallel.gathering import all_but_gathered, gathered_state, gathers
from unihetero_jax.parallel.mesh import constrain

REMAT_POLICIES = {
    # JAX does not recognize attention by a kernel as a product; its result is saved by name.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(RESIDUALS),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


# Layers that are compiled one by one on one CPU device, at most.
_UNROLLED = 8


class Cache(NamedTuple):
    """Keys and values of every layer, [L, B, S, G, C]; slot s of a row is its s-th input."""

    key: jax.Array
    value: jax.Array


def linear(
    size_in: int, size_out: int, axes: tuple[str | None, str | None], dtype: Any, rngs: nnx.Rngs, bias: bool = True
) -> nnx.Linear:
    """Build a linear map with float32 parameters, computed in ``dtype``."""
    return nnx.Linear(
        size_in,
        size_out,
        use_bias=bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=initializers.fan_in(*axes),
        bias_init=initializers.zeros(axes[1]),
        rngs=rngs,
    )


def rms_norm(width: int, epsilon: float, axis: str, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Build an RMSNorm over the last axis with a float32 scale, computed in float32."""
    return nnx.RMSNorm(
        width,
        epsilon=epsilon,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        scale_init=initializers.ones(axis),
        rngs=rngs,
    )


def rotary_frequencies(width: int, theta: float, scaling: RopeScalingConfig) -> Float[Array, " half"]:
    """Return radians per position of each channel pair: theta^(−2i / width) (RoFormer, arXiv 2104.09864, eq. 15).

    Scaled, ``f · (blend + (1 − blend) / factor)``. ``linear``: blend 0 (position interpolation, arXiv 2306.15595).
    ``llama3``: with λ = 2π / f, the positions of a turn, blend = (original / λ − low) / (high − low) within [0, 1]
    (Meta's llama-models, ``apply_scaling``).
    """
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling.kind == "none":
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * frequency / (2 * math.pi)
    blend = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (blend + (1.0 - blend) / scaling.factor)


class Rotation(NamedTuple):
    """Cosine and sine of the angle of each pair of channels, [B, T, C/2]."""

    cos: jax.Array
    sin: jax.Array


def rotation(position_BT: Int[Array, "B T"], width: int, theta: float, scaling: RopeScalingConfig) -> Rotation:
    """Return the rotation of each slot's channels, by position times frequency."""
    angle_BTc = position_BT[..., None].astype(jnp.float32) * rotary_frequencies(width, theta, scaling)
    return Rotation(jnp.cos(angle_BTc), jnp.sin(angle_BTc))


def rotate(x_BTHC: Float[Array, "B T H C"], by: Rotation) -> Float[Array, "B T H C"]:
    """Rotate channel i with channel i + C/2, as Llama does, in float32."""
    cos, sin = (part[:, :, None] for part in by)
    first, second = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHC.dtype)


def flatten(x_BTX: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Reshape [B, T, …] to [B·T, …] where the sequence is not split over devices.

    On CPU the weight gradient of a product over one token axis takes about half the time of one over two.
    """
    if mesh is not None and mesh.shape["context"] > 1:
        return x_BTX
    return x_BTX.reshape(-1, *x_BTX.shape[2:])


def unflatten(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Invert ``flatten`` for rows and slots of ``shape``; an array that was left alone stays as it is."""
    return x if x.shape[:2] == shape else x.reshape(*shape, *x.shape[1:])


class Block(nnx.Module):
    """One layer: attention and SwiGLU, each on a normed input and added to the residual."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        width, head = config.width, config.head_dim
        self.config = config

        def heads(count: int, axis: str) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                width,
                (count, head),
                use_bias=config.qkv_bias,
                dtype=dtype,
                param_dtype=jnp.float32,
                kernel_init=initializers.fan_in("embed", axis, "head"),
                bias_init=initializers.zeros(axis, "head"),
                rngs=rngs,
            )

        self.attention_norm = rms_norm(width, config.norm_epsilon, "embed", rngs)
        self.query = heads(config.heads, "heads")
        self.key = heads(config.kv_heads, "kv_heads")
        self.value = heads(config.kv_heads, "kv_heads")
        if config.qk_norm:
            self.query_norm = rms_norm(head, config.norm_epsilon, "head", rngs)
            self.key_norm = rms_norm(head, config.norm_epsilon, "head", rngs)
        # Residual branches start small, so that depth does not change the scale of the stream (GPT-2).
        out_scale = 1.0 / (2 * config.layers)
        self.output = nnx.LinearGeneral(
            (config.heads, head),
            width,
            axis=(-2, -1),
            use_bias=False,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=initializers.fan_in("heads", "head", "embed", scale=out_scale),
            rngs=rngs,
        )
        self.mlp_norm = rms_norm(width, config.norm_epsilon, "embed", rngs)
        self.gate = linear(width, config.mlp_width, ("embed", "mlp"), dtype, rngs, bias=False)
        self.up = linear(width, config.mlp_width, ("embed", "mlp"), dtype, rngs, bias=False)
        self.down = nnx.Linear(
            config.mlp_width,
            width,
            use_bias=False,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=initializers.fan_in("mlp", "embed", scale=out_scale),
            rngs=rngs,
        )
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        by: Rotation,
        readable: Readable,
        dropout_key: jax.Array | None,
        number: jax.Array,
        cache: Cache | None,
        start: jax.Array | int,
        mesh: Mesh | None,
    ) -> tuple[jax.Array, Cache | None]:
        """Return the layer's output; with a cache, also fill its slots from ``start`` of layer ``number``."""
        dtype = jnp.dtype(self.config.dtype)
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        normed = flatten(self.attention_norm(x_BTD).astype(dtype), mesh)
        shape = x_BTD.shape[:2]
        mapped = linears((self.query, self.key, self.value), normed, mesh)
        query, key, value = (unflatten(x, shape) for x in mapped)
        if self.config.qk_norm:
            query, key = self.query_norm(query).astype(dtype), self.key_norm(key).astype(dtype)
        query, key = rotate(query, by), rotate(key, by)
        if cache is not None:
            # All layers' keys and values stay in one array that is written in place: no copy of them per token.
            new = (entry.astype(old.dtype)[None] for entry, old in zip((key, value), cache, strict=True))
            place = (number, 0, start, 0, 0)
            cache = Cache(*(jax.lax.dynamic_update_slice(h, n, place) for h, n in zip(cache, new, strict=True)))
            key, value = (entry[number].astype(dtype) for entry in cache)
        query = constrain(query, mesh, "batch", "sequence", "heads", None)
        mixed = attention(query, key, value, readable, self.config.attention, mesh)
        x_BTD = x_BTD + self._drop(unflatten(linears((self.output,), flatten(mixed, mesh), mesh)[0], shape), keys[0])
        normed = flatten(self.mlp_norm(x_BTD).astype(dtype), mesh)
        mixed = swiglu(self.gate, self.up, self.down, normed, mesh)
        x_BTD = x_BTD + self._drop(unflatten(mixed, shape), keys[1])
        return constrain(x_BTD, mesh, "batch", "sequence", None), cache

    def _drop(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None or not self.config.dropout:
            return x
        return self.dropout(x, deterministic=False, rngs=nnx.Rngs(dropout=key))


class Decoder(nnx.Module):
    """Token embeddings, the stack of layers, the final norm and the output head."""

    def __init__(self, config: DecoderConfig, vocabulary: int, *, rngs: nnx.Rngs):
        self.config = config
        self.vocabulary = vocabulary
        self.rows = table_rows(vocabulary)
        table = nnx.initializers.normal(config.embedding_scale)
        self.embedding = nnx.Param(
            table(rngs.params(), (self.rows, config.width), jnp.float32), axes=("vocab", "embed")
        )
        if not config.tie_embeddings:
            kernel = nnx.initializers.lecun_normal()(rngs.params(), (config.width, self.rows), jnp.float32)
            self.head = nnx.Param(kernel, axes=("embed", "vocab"))
        make = nnx.split_rngs(splits=config.layers)(nnx.vmap(lambda rngs: Block(config, rngs=rngs)))
        self.layers = make(rngs)
        self.norm = rms_norm(config.width, config.norm_epsilon, "embed", rngs)

    def embed(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the input embeddings of token ids."""
        return self.embedding[...][tokens_BT].astype(jnp.dtype(self.config.dtype))

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        position_BT: Int[Array, "B T"],
        readable: Readable,
        *,
        dropout_key: jax.Array | None = None,
        cache: Cache | None = None,
        start: jax.Array | int = 0,
        mesh: Mesh | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Return the hidden states after the final norm.

        Args:
          x_BTD: input embeddings.
          position_BT: rotary position of each slot.
          readable: which slots each may read: a mask [B, T, S], where S is T or the cache's length; or ``Packed``.
          dropout_key: for dropout; none without it.
          cache: keys and values of earlier slots; these T slots are written at ``start``.
          start: first cache slot to write.
          mesh: where activations are constrained to.

        Returns:
          The hidden states, and the cache with these slots in it (None without one).
        """
        x_BTD, cache, _ = self._through(x_BTD, position_BT, readable, dropout_key, cache, start, mesh)
        return self.norm(x_BTD).astype(jnp.dtype(self.config.dtype)), cache

    def states(
        self,
        x_BTD: Float[Array, "B T D"],
        position_BT: Int[Array, "B T"],
        readable: Readable,
        mesh: Mesh | None = None,
    ) -> Float[Array, "L B T D"]:
        """Return the residual stream after each layer, before the final norm; arguments as of a call."""
        _, _, states = self._through(x_BTD, position_BT, readable, None, None, 0, mesh, keep=True)
        assert states is not None
        return states

    def _through(
        self,
        x_BTD: jax.Array,
        position_BT: jax.Array,
        readable: Readable,
        dropout_key: jax.Array | None,
        cache: Cache | None,
        start: jax.Array | int,
        mesh: Mesh | None,
        keep: bool = False,
    ) -> tuple[jax.Array, Cache | None, jax.Array | None]:
        """Return the last layer's output, the cache, and with ``keep`` every layer's output."""
        config = self.config
        # Behind a barrier: XLA would compute them again wherever they are used.
        by = jax.lax.optimization_barrier(
            rotation(position_BT, config.head_dim, config.rope_theta, config.rope_scaling)
        )
        dtype = jnp.dtype(config.dtype)
        readable = prepared(readable, config.attention, mesh, x_BTD.shape[1], config.head_dim, dtype)
        graph, stacked = nnx.split(self.layers)

        def layer(
            carry: tuple[jax.Array, Cache | None], scanned: Any
        ) -> tuple[tuple[jax.Array, Cache | None], jax.Array | None]:
            x, cache = carry
            state, number = scanned
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
            state = gathered_state(state, mesh, config.dtype)
            x, cache = nnx.merge(graph, state)(x, by, readable, key, number, cache, start, mesh)
            return (x, cache), x if keep else None

        if config.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[config.remat])
        elif gathers(mesh):
            # Keeping every activation must not keep every layer's whole weights.
            layer = jax.checkpoint(layer, policy=all_but_gathered)
        x_BTD = constrain(x_BTD, mesh, "batch", "sequence", None)
        # On a CPU, stacking what the backward pass needs costs more than it takes to compile each layer.
        unroll = cache is None and config.layers <= _UNROLLED and on_one_cpu(mesh)
        (x_BTD, cache), states = jax.lax.scan(
            layer, (x_BTD, cache), (stacked, jnp.arange(config.layers)), unroll=unroll
        )
        return x_BTD, cache, states

    def output_kernel(self) -> Float[Array, "D V"]:
        """Return the output head's matrix, float32, with ``logit_scale`` in it."""
        kernel = self.embedding[...].T if self.config.tie_embeddings else self.head[...]
        return kernel.astype(jnp.float32) * self.config.logit_scale

    def logits(
        self,
        hidden_BTD: Float[Array, "B T D"],
        kernel_DV: Float[Array, "D V"] | None = None,
        mesh: Mesh | None = None,
    ) -> Float[Array, "B T V"]:
        """Return float32 logits over the vocabulary (without the table's padding).

        Args:
          hidden_BTD: hidden states.
          kernel_DV: ``output_kernel`` in the type of the products, where that was made before.
          mesh: that the hidden states are split over.
        """
        if kernel_DV is None:
            kernel_DV = self.output_kernel().astype(jnp.dtype(self.config.dtype))
        if on_one_cpu(mesh):
            rows = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
            logits = products(rows, [kernel_DV], jnp.float32)[0].reshape(*hidden_BTD.shape[:-1], -1)
        else:
            logits = jnp.matmul(hidden_BTD, kernel_DV, preferred_element_type=jnp.float32)
        return logits[..., : self.vocabulary]

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """Return a cache for ``rows`` sequences of up to ``slots`` inputs."""
        shape = (self.config.layers, rows, slots, self.config.kv_heads, self.config.head_dim)
        dtype = jnp.dtype(self.config.dtype)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
