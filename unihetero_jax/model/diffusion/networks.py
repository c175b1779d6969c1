"""What predicts noise (or velocity) from noised latents, timesteps and the decoder's hidden states.

Both networks are called as ``network(noised, timestep, condition)``, with one timestep per token. Each run of ``group``
tokens shares its timestep: 1 token for the MLP, those of an image for the DiT.

M tokens, C channels of a latent, O outputs per token, D width of the condition, W width of the network, L blocks,
N tokens of an image, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from unihetero_jax.errors import UsageError
from unihetero_jax.model.attention.base import attention
from unihetero_jax.model.decoder import linear
from unihetero_jax.parallel import initializers
from unihetero_jax.parallel.mesh import constrain

FREQUENCIES = 256


def timestep_embedding(timestep: Float[Array, "*any"], size: int = FREQUENCIES) -> Float[Array, "*any size"]:
    """Return cosines, then sines, of the timestep at frequencies from 1 to nearly 1/10,000 (DDPM's code)."""
    half = size // 2
    frequency = jnp.exp(-math.log(10_000.0) / half * jnp.arange(half, dtype=jnp.float32))
    angle = timestep[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def zero_linear(size_in: int, size_out: int, axes: tuple[str | None, str | None], dtype: Any, rngs: nnx.Rngs) -> Any:
    """Build a linear map that starts at zero, so that a block starts as the identity (adaLN-Zero, arXiv 2212.09748)."""
    return nnx.Linear(
        size_in,
        size_out,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=initializers.zeros(*axes),
        bias_init=initializers.zeros(axes[1]),
        rngs=rngs,
    )


def layer_norm(width: int, rngs: nnx.Rngs, affine: bool = False) -> nnx.LayerNorm:
    """Build a layer norm in float32; ``affine``: with a learned scale and bias."""
    return nnx.LayerNorm(
        width,
        epsilon=1e-6,
        use_scale=affine,
        use_bias=affine,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        scale_init=initializers.ones("features"),
        bias_init=initializers.zeros("features"),
        rngs=rngs,
    )


def modulated(norm: nnx.LayerNorm, x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Return ``norm(x) · (1 + scale) + shift``, computed in float32 and cast back."""
    return (norm(x) * (1.0 + scale) + shift).astype(x.dtype)


class MLPBlock(nnx.Module):
    """A residual MLP on each token, modulated and gated by its time and condition."""

    def __init__(self, width: int, dtype: Any, *, rngs: nnx.Rngs):
        self.norm = layer_norm(width, rngs, affine=True)
        self.hidden = linear(width, width, ("features", "hidden"), dtype, rngs)
        self.output = linear(width, width, ("hidden", "features"), dtype, rngs)
        self.modulation = zero_linear(width, 3 * width, ("features", "hidden"), dtype, rngs)

    def __call__(self, x: jax.Array, given: jax.Array) -> jax.Array:
        """Return the tokens, [..., M, W], after the block."""
        shift, scale, gate = jnp.split(self.modulation(given), 3, axis=-1)
        return x + gate * self.output(jax.nn.silu(self.hidden(modulated(self.norm, x, shift, scale))))


class DiTBlock(nnx.Module):
    """Attention among an image's tokens and an MLP on each, both modulated and gated (arXiv 2212.09748)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dtype: Any, *, rngs: nnx.Rngs):
        self.heads = heads
        self.attention_norm = layer_norm(width, rngs)
        self.query = linear(width, width, ("features", "hidden"), dtype, rngs)
        # What a bias adds to the keys is the same in all scores of a query, and softmax does not see it.
        self.key = linear(width, width, ("features", "hidden"), dtype, rngs, bias=False)
        self.value = linear(width, width, ("features", "hidden"), dtype, rngs)
        self.mixed = linear(width, width, ("hidden", "features"), dtype, rngs)
        self.mlp_norm = layer_norm(width, rngs)
        self.hidden = linear(width, mlp_ratio * width, ("features", "hidden"), dtype, rngs)
        self.output = linear(mlp_ratio * width, width, ("hidden", "features"), dtype, rngs)
        self.modulation = zero_linear(width, 6 * width, ("features", "hidden"), dtype, rngs)

    def __call__(self, x: jax.Array, given: jax.Array) -> jax.Array:
        """Return the images' tokens, [images, N, W], after the block."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(self.modulation(given), 6, axis=-1)
        normed = modulated(self.attention_norm, x, shift, scale)
        images, tokens, width = x.shape
        split = (images, tokens, self.heads, width // self.heads)
        query, key, value = (part(normed).reshape(split) for part in (self.query, self.key, self.value))
        everything = jnp.ones((images, tokens, tokens), bool)
        x = x + gate * self.mixed(attention(query, key, value, everything).reshape(x.shape))
        normed = modulated(self.mlp_norm, x, mlp_shift, mlp_scale)
        return x + mlp_gate * self.output(jax.nn.gelu(self.hidden(normed)))


class Sizes(NamedTuple):
    """Sizes of a network.

    Attributes:
      channels: C, of a latent.
      outputs: O, what is predicted for a token: C, or 2·C with a learned variance.
      condition: D, width of the condition.
      depth: L, blocks.
      width: W.
    """

    channels: int
    outputs: int
    condition: int
    depth: int
    width: int


class Network(nnx.Module):
    """What the two networks share: the layers before and after the blocks, and the null condition.

    Args:
      sizes: widths and depth of the network.
      null_condition: whether there is a learned condition that stands for none; guidance needs it.
      dtype: type of matrix products and activations.
      rngs: for initialization.
    """

    group = 1
    _make_block: Callable[[int, nnx.Rngs], nnx.Module]

    def __init__(
        self,
        sizes: Sizes,
        *,
        null_condition: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels, outputs, condition, depth, width = sizes
        self.channels = channels
        self.outputs = outputs
        self.dtype = dtype
        self.time_hidden = linear(FREQUENCIES, width, ("features", "hidden"), dtype, rngs)
        self.time_output = linear(width, width, ("hidden", "features"), dtype, rngs)
        self.condition = linear(condition, width, ("embed", "hidden"), dtype, rngs)
        self.input = linear(channels, width, (None, "features"), dtype, rngs)
        make = nnx.vmap(lambda rngs: self._make_block(width, rngs))
        self.blocks = nnx.split_rngs(splits=depth)(make)(rngs)
        self.final_norm = layer_norm(width, rngs)
        self.final_modulation = zero_linear(width, 2 * width, ("features", "hidden"), dtype, rngs)
        self.output = zero_linear(width, outputs, ("features", None), dtype, rngs)
        self.null_condition: nnx.Param | None
        self.null_condition = nnx.Param(jnp.zeros((condition,)), axes=("embed",)) if null_condition else None

    def unconditional(self, condition: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
        """Return the null condition in place of every condition.

        Raises:
          UsageError: the network has none.
        """
        if self.null_condition is None:
            raise UsageError(
                "guidance: this diffusion network has no null condition; train it with condition_dropout above 0, or "
                "give `unconditional`"
            )
        return jnp.broadcast_to(self.null_condition[...].astype(condition.dtype), condition.shape)

    def dropped(self, condition: Float[Array, "*any D"], where: Bool[Array, "*any"]) -> Float[Array, "*any D"]:
        """Return the condition, replaced by the null condition where it is dropped."""
        return jnp.where(where[..., None], self.unconditional(condition), condition)

    def _given(self, timestep: jax.Array, condition: jax.Array) -> jax.Array:
        """Return SiLU of the sum of both embeddings, [..., W]; every modulation is a linear map of it."""
        # The sines are float32 whatever the compute type: bf16 cannot distinguish timesteps 997 and 998.
        time = self.time_output(jax.nn.silu(self.time_hidden(timestep_embedding(timestep))))
        return jax.nn.silu(time + self.condition(condition))

    def _run(self, x: jax.Array, given: jax.Array, mesh: Mesh | None) -> jax.Array:
        graph, stacked = nnx.split(self.blocks)

        def rows(x: jax.Array) -> jax.Array:
            # Left alone, activations take the split of the weights, and every device has the tokens of all rows.
            return constrain(x, mesh, "batch", *[None] * (x.ndim - 1))

        given = rows(given)

        def block(x: jax.Array, state: Any) -> tuple[jax.Array, None]:
            return rows(nnx.merge(graph, state)(rows(x), given)), None

        x, _ = jax.lax.scan(block, rows(x), stacked)
        shift, scale = jnp.split(self.final_modulation(given), 2, axis=-1)
        return self.output(modulated(self.final_norm, x, shift, scale)).astype(jnp.float32)


class DiffusionMLP(Network):
    """MAR's per-token denoiser (arXiv 2406.11838, section 3.2 and appendix): each token alone, given its condition."""

    def _make_block(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        return MLPBlock(width, self.dtype, rngs=rngs)

    def __call__(
        self,
        noised: Float[Array, "*any C"],
        timestep: Float[Array, "*any"],
        condition: Float[Array, "*any D"],
        mesh: Mesh | None = None,
    ) -> Float[Array, "*any O"]:
        """Predict each token's noise (or velocity), float32, and the variance where it is learned.

        With a ``mesh`` the first axis is split over it as the rows of a batch.
        """
        noised, timestep, condition = jnp.asarray(noised), jnp.asarray(timestep), jnp.asarray(condition)
        return self._run(self.input(noised), self._given(timestep, condition), mesh)


class DiT(Network):
    """A small diffusion transformer over the N tokens of each image, each modulated by its own condition and time."""

    def __init__(
        self,
        sizes: Sizes,
        heads: int,
        tokens: int,
        *,
        mlp_ratio: int = 4,
        rngs: nnx.Rngs,
        **shared: Any,
    ):
        width = sizes.width
        if width % heads:
            raise UsageError(f"diffusion network: width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.mlp_ratio = mlp_ratio
        self.group = tokens
        super().__init__(sizes, rngs=rngs, **shared)
        table = nnx.initializers.normal(0.02)(rngs.params(), (tokens, width), jnp.float32)
        self.positions = nnx.Param(table, axes=("patches", "features"))

    def _make_block(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        return DiTBlock(width, self.heads, self.mlp_ratio, self.dtype, rngs=rngs)

    def __call__(
        self,
        noised: Float[Array, "*any M C"],
        timestep: Float[Array, "*any M"],
        condition: Float[Array, "*any M D"],
        mesh: Mesh | None = None,
    ) -> Float[Array, "*any M O"]:
        """Predict each token's noise (or velocity), float32; tokens are images one after another.

        Raises:
          ValueError: the tokens are not whole images.
        """
        noised, timestep, condition = jnp.asarray(noised), jnp.asarray(timestep), jnp.asarray(condition)
        shape = noised.shape[:-1]
        if shape[-1] % self.group:
            raise ValueError(f"{shape[-1]} tokens are not whole images of {self.group}")

        def images(x: jax.Array) -> jax.Array:
            return x.reshape(-1, self.group, x.shape[-1])

        x = images(self.input(noised)) + self.positions[...].astype(self.dtype)
        return self._run(x, images(self._given(timestep, condition)), mesh).reshape(*shape, self.outputs)
