"""Vision transformers: what DINOv2, SigLIP and CLIP have in common, and the switches in which they differ.

B rows (or images), K images per row, N tokens, L layers, D width, H heads, C head width, F feature width (= D),
P pixels of a patch (side · side · 3).

Parameters carry their logical axes as metadata (``axes``), as the decoder's do; the layers are one stack, [L, …].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from unihetero_jax.config.tree import check
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel import initializers
from unihetero_jax.parallel.gathering import gathered_state
from unihetero_jax.parallel.mesh import constrain
from unihetero_jax.towers.base import Tower
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.preprocess import prepare, resize_table

Activation = Callable[[jax.Array], jax.Array]


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU as x · Φ(x) (arXiv 1606.08415)."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
    """GELU as x · sigmoid(1.702 x), that of OpenAI's CLIP (arXiv 1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


@dataclass(frozen=True)
class Anatomy:
    """What a family has: ``pre_norm`` before the first block, ``final_norm`` on the last hidden state."""

    class_token: bool
    patch_bias: bool
    pre_norm: bool
    final_norm: bool
    layer_scale: bool
    activation: Activation


def _norm(config: ViTConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.width,
        epsilon=config.norm_epsilon,
        dtype=jnp.float32,
        param_dtype=jnp.dtype(config.param_dtype),
        scale_init=initializers.ones("embed"),
        bias_init=initializers.zeros("embed"),
        # E[x²] − E[x]² loses digits in the outlier channels that these models have.
        use_fast_variance=False,
        rngs=rngs,
    )


def _linear(
    config: ViTConfig, size_in: int, size_out: int, axes: tuple[str, str], rngs: nnx.Rngs, **options: Any
) -> nnx.Linear:
    scale = options.pop("scale", 1.0)
    return nnx.Linear(
        size_in,
        size_out,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=initializers.fan_in(*axes, scale=scale),
        bias_init=initializers.zeros(axes[1]),
        rngs=rngs,
        **options,
    )


class Block(nnx.Module):
    """One layer: attention and MLP (or SwiGLU), each on a normed input, scaled, and added to the residual."""

    def __init__(self, config: ViTConfig, anatomy: Anatomy, *, rngs: nnx.Rngs):
        self.config = config
        self.anatomy = anatomy
        dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
        width, head = config.width, config.width // config.heads

        def heads() -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                width,
                (config.heads, head),
                dtype=dtype,
                param_dtype=param_dtype,
                kernel_init=initializers.fan_in("embed", "heads", "head"),
                bias_init=initializers.zeros("heads", "head"),
                rngs=rngs,
            )

        def layer_scale() -> nnx.Param | None:
            return nnx.Param(jnp.ones(width, param_dtype), axes=("embed",)) if anatomy.layer_scale else None

        # Residual branches start small, so that depth does not change the scale of the stream (GPT-2).
        out_scale = 1.0 / (2 * config.layers)
        self.attention_norm = _norm(config, rngs)
        self.query, self.key, self.value = heads(), heads(), heads()
        self.output = nnx.LinearGeneral(
            (config.heads, head),
            width,
            axis=(-2, -1),
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=initializers.fan_in("heads", "head", "embed", scale=out_scale),
            bias_init=initializers.zeros("embed"),
            rngs=rngs,
        )
        self.attention_scale = layer_scale()
        self.mlp_norm = _norm(config, rngs)
        self.gate = _linear(config, width, config.mlp_width, ("embed", "mlp"), rngs) if config.swiglu else None
        self.up = _linear(config, width, config.mlp_width, ("embed", "mlp"), rngs)
        self.down = _linear(config, config.mlp_width, width, ("mlp", "embed"), rngs, scale=out_scale)
        self.mlp_scale = layer_scale()

    def __call__(self, x_BND: Float[Array, "B N D"], mesh: Mesh | None) -> Float[Array, "B N D"]:
        """The layer's output."""
        dtype = x_BND.dtype
        normed = self.attention_norm(x_BND).astype(dtype)
        query = constrain(self.query(normed), mesh, "batch", None, "heads", None)
        mixed = jax.nn.dot_product_attention(query, self.key(normed), self.value(normed), implementation="xla")
        x_BND = x_BND + self._scaled(self.output(mixed), self.attention_scale)
        normed = self.mlp_norm(x_BND).astype(dtype)
        if self.gate is None:
            hidden = self.anatomy.activation(self.up(normed))
        else:
            hidden = jax.nn.silu(self.gate(normed)) * self.up(normed)
        x_BND = x_BND + self._scaled(self.down(hidden), self.mlp_scale)
        return constrain(x_BND, mesh, "batch", None, None)

    def _scaled(self, x: jax.Array, scale: nnx.Param | None) -> jax.Array:
        return x if scale is None else x * scale[...].astype(x.dtype)


class VisionTransformer(Tower):
    """Patches, leading tokens (class, registers), positions and the stack of layers; a tower of its patch tokens.

    Args:
      config: sizes and use.
      anatomy: what the family has.
      rngs: for initialization.

    Raises:
      UsageError: a config that cannot be built.
    """

    def __init__(self, config: ViTConfig, anatomy: Anatomy, *, rngs: nnx.Rngs):
        check(config, config.family)
        self.config = config
        self.anatomy = anatomy
        self.tokens, self.width = config.token_count, config.width
        width, param_dtype = config.width, jnp.dtype(config.param_dtype)
        pixels = config.patch_size**2 * 3
        positions = (config.image_size // config.patch_size) ** 2 + anatomy.class_token

        def table(rows: int, axis: str | None) -> nnx.Param:
            initial = nnx.initializers.normal(0.02)(rngs.params(), (rows, width), param_dtype)
            return nnx.Param(initial, axes=(axis, "embed"))

        # In training another may take its place (``split_patches``).
        self.patch: Callable[[jax.Array], jax.Array] = _linear(
            config, pixels, width, ("pixels", "embed"), rngs, use_bias=anatomy.patch_bias
        )
        self.positions = table(positions, "patches")
        self.class_token = table(1, None) if anatomy.class_token else None
        self.registers = table(config.registers, None) if config.registers else None
        self.pre_norm = _norm(config, rngs) if anatomy.pre_norm else None
        make = nnx.split_rngs(splits=config.layers)(nnx.vmap(lambda rngs: Block(config, anatomy, rngs=rngs)))
        self.layers = make(rngs)
        self.final_norm = _norm(config, rngs) if anatomy.final_norm else None

    def embed(self, pixels_BHWC: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """What enters the first block: class token, registers, then the patches in reading order."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        side, images = config.patch_size, pixels_BHWC.shape[0]
        grid = (pixels_BHWC.shape[1] // side, pixels_BHWC.shape[2] // side)
        # As a convolution without padding, which leaves what does not fill a patch.
        cut = pixels_BHWC[:, : grid[0] * side, : grid[1] * side]
        patches = cut.reshape(images, grid[0], side, grid[1], side, 3).transpose(0, 1, 3, 2, 4, 5)
        x_BND = self.patch(patches.reshape(images, grid[0] * grid[1], -1).astype(dtype))
        own = int(self.anatomy.class_token)
        positions = self.positions[...]
        x_BND = x_BND + resize_table(positions[own:], grid, antialias=config.antialias_positions).astype(dtype)
        leading = []
        if self.class_token is not None:
            leading.append(self.class_token[...] + positions[:1])
        if self.registers is not None:
            leading.append(self.registers[...])
        if leading:
            first = jnp.concatenate(leading).astype(dtype)
            x_BND = jnp.concatenate([jnp.broadcast_to(first, (images, *first.shape)), x_BND], axis=1)
        return x_BND if self.pre_norm is None else self.pre_norm(x_BND).astype(dtype)

    def hidden_states(
        self, pixels_BHWC: Float[Array, "B H W 3"], layer: int = -1, mesh: Mesh | None = None
    ) -> Float[Array, "B N D"]:
        """Hidden states of normalized pixels, float32, tokens in the published order: class, registers, patches.

        Args:
          pixels_BHWC: normalized pixels; another size than the position table's resizes the table.
          layer: −1 the published last hidden state (after the final norm, where the family has one there), −2 what the
            block before the last gives, without norm, and so on to −(L + 1), the embeddings. Blocks after it are not
            computed.
          mesh: where activations are constrained to.

        Raises:
          UsageError: no such layer, or an image smaller than a patch.
        """
        depth = self.config.layers + layer + 1
        if not 0 <= depth <= self.config.layers:
            raise UsageError(f"layer={layer}; expected −1 (the last) to {-self.config.layers - 1} (the embeddings)")
        if min(pixels_BHWC.shape[1:3]) < self.config.patch_size:
            raise UsageError(f"pixels {pixels_BHWC.shape}: expected sides of at least {self.config.patch_size}")
        x_BND = constrain(self.embed(pixels_BHWC), mesh, "batch", None, None)
        graph, stacked = nnx.split(self.layers)
        if depth < self.config.layers:
            stacked = jax.tree.map(lambda leaf: leaf[:depth], stacked)

        def block(x: jax.Array, state: Any) -> tuple[jax.Array, None]:
            return nnx.merge(graph, gathered_state(state, mesh, self.config.dtype))(x, mesh), None

        x_BND, _ = jax.lax.scan(jax.checkpoint(block) if self.config.remat == "full" else block, x_BND, stacked)
        if layer == -1 and self.final_norm is not None:
            x_BND = self.final_norm(x_BND)
        return x_BND.astype(jnp.float32)

    def __call__(self, images_BKHWC: UInt8[Array, "B K H W 3"], mesh: Mesh | None = None) -> Float[Array, "B K N F"]:
        """Features of each patch, float32; the class token in front of them where the config keeps it."""
        config = self.config
        rows, images = images_BKHWC.shape[:2]
        pixels = prepare(images_BKHWC.reshape(rows * images, *images_BKHWC.shape[2:]), config)
        hidden = self.hidden_states(pixels, config.layer, mesh)
        features = hidden[:, self.anatomy.class_token + config.registers :]
        if config.class_token:
            features = jnp.concatenate([hidden[:, :1], features], axis=1)
        return features.reshape(rows, images, *features.shape[1:])
