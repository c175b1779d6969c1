"""What the image autoencoders are built of: residual blocks, attention over the grid, levels that halve or double it.

The family of VQGAN (arXiv 2012.09841) and latent diffusion (arXiv 2112.10752), as VQ-16 and KL-16 publish it, with
channels last. B images, H and W the grid, C channels, N = H·W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from unihetero_jax.parallel import initializers
from unihetero_jax.towers.base import Tower
from unihetero_jax.towers.common.autoencoder.config import AutoencoderConfig

_BIAS = initializers.zeros("channels")


def _kernel(size_in: int, size_out: int, spatial: int, silent: bool) -> Any:
    """Initialiser of variance 1 / fan-in; the wider of a kernel's two sides is the one that is split over devices.

    ``silent``: zeros, for what ends a residual branch. An autoencoder then starts as the linear one of its shortcuts,
    through which colors pass from the first steps on; otherwise twins of ours took hundreds of steps to find them.
    """
    axes = ("channels", None) if size_in > size_out else (None, "channels")
    make = initializers.zeros if silent else initializers.fan_in
    return make(*(None,) * spatial, *axes)


def convolution(
    size_in: int,
    size_out: int,
    dtype: Any,
    rngs: nnx.Rngs,
    *,
    stride: int = 1,
    padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1)),
    silent: bool = False,
) -> nnx.Conv:
    """A 3 × 3 convolution with float32 parameters, computed in ``dtype``; ``silent``: it starts with zeros."""
    return nnx.Conv(
        size_in,
        size_out,
        (3, 3),
        strides=stride,
        padding=padding,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=_kernel(size_in, size_out, 2, silent),
        bias_init=_BIAS,
        rngs=rngs,
    )


def projection(size_in: int, size_out: int, dtype: Any, rngs: nnx.Rngs, *, silent: bool = False) -> nnx.Linear:
    """A linear map of each place's channels (a 1 × 1 convolution), as ``convolution``."""
    return nnx.Linear(
        size_in,
        size_out,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=_kernel(size_in, size_out, 0, silent),
        bias_init=_BIAS,
        rngs=rngs,
    )


def group_norm(channels: int, config: AutoencoderConfig, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group norm in float32."""
    return nnx.GroupNorm(
        channels,
        config.groups,
        epsilon=config.norm_epsilon,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        # E[x²] − E[x]² cancels where a group's mean is far from zero, as in the deep levels.
        use_fast_variance=False,
        scale_init=initializers.ones("channels"),
        bias_init=_BIAS,
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """Twice norm, swish and convolution, added to the input (projected where the width changes)."""

    def __init__(self, size_in: int, size_out: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.norm1 = group_norm(size_in, config, rngs)
        self.conv1 = convolution(size_in, size_out, dtype, rngs)
        self.norm2 = group_norm(size_out, config, rngs)
        self.conv2 = convolution(size_out, size_out, dtype, rngs, silent=True)
        self.shortcut = projection(size_in, size_out, dtype, rngs) if size_in != size_out else None

    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """The block's output."""
        hidden = self.conv1(jax.nn.silu(self.norm1(x_BHWC)))
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        return (x_BHWC if self.shortcut is None else self.shortcut(x_BHWC)) + hidden


class GridAttention(nnx.Module):
    """One head of attention from every place of the grid to every place, added to the input."""

    def __init__(self, channels: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.norm = group_norm(channels, config, rngs)
        self.query = projection(channels, channels, dtype, rngs)
        self.key = projection(channels, channels, dtype, rngs)
        self.value = projection(channels, channels, dtype, rngs)
        self.output = projection(channels, channels, dtype, rngs, silent=True)

    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The layer's output."""
        batch, height, width, channels = x_BHWC.shape
        normed = self.norm(x_BHWC).reshape(batch, height * width, 1, channels)
        mixed = jax.nn.dot_product_attention(self.query(normed), self.key(normed), self.value(normed))
        return x_BHWC + self.output(mixed.reshape(batch, height, width, channels))


class Halve(nnx.Module):
    """A convolution of stride 2; the row and column of padding are at the lower right alone."""

    def __init__(self, channels: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.conv = convolution(channels, channels, dtype, rngs, stride=2, padding=((0, 1), (0, 1)))

    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """A grid of half the side."""
        return self.conv(x_BHWC)


class Double(nnx.Module):
    """Each place twice along both sides, then a convolution."""

    def __init__(self, channels: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.conv = convolution(channels, channels, jnp.dtype(config.dtype), rngs)

    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """A grid of twice the side."""
        return self.conv(jnp.repeat(jnp.repeat(x_BHWC, 2, axis=1), 2, axis=2))


class Level(nnx.Module):
    """The residual blocks of one grid, attention after each or after none, and the way to the next grid."""

    def __init__(
        self,
        size_in: int,
        size_out: int,
        config: AutoencoderConfig,
        *,
        blocks: int,
        attention: bool,
        resample: type[Halve] | type[Double] | None,
        rngs: nnx.Rngs,
    ):
        self.blocks = nnx.List(
            [ResidualBlock(size_out if number else size_in, size_out, config, rngs=rngs) for number in range(blocks)]
        )
        self.attention = nnx.List([GridAttention(size_out, config, rngs=rngs) for _ in range(blocks * attention)])
        self.resample = None if resample is None else resample(size_out, config, rngs=rngs)

    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """The next grid."""
        for number, block in enumerate(self.blocks):
            x_BHWC = block(x_BHWC)
            if self.attention:
                x_BHWC = self.attention[number](x_BHWC)
        return x_BHWC if self.resample is None else self.resample(x_BHWC)


class Middle(nnx.Module):
    """A residual block, attention and a residual block on the smallest grid."""

    def __init__(self, channels: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.first = ResidualBlock(channels, channels, config, rngs=rngs)
        self.attention = GridAttention(channels, config, rngs=rngs)
        self.second = ResidualBlock(channels, channels, config, rngs=rngs)

    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The same grid."""
        return self.second(self.attention(self.first(x_BHWC)))


def cosines(side: int) -> np.ndarray:
    """[side, side] float32: row k is the k-th cosine over ``side`` places, orthonormal (DCT-II); row 0 is constant."""
    places = (np.arange(side) + 0.5) / side
    rows = np.sqrt(2.0 / side) * np.cos(np.pi * np.arange(side)[:, None] * places)
    rows[0] = side**-0.5
    return rows.astype(np.float32)


def analyse(images_BHWC: Float[Array, "B H W 3"], side: int) -> Float[Array, "B h w P"]:
    """Patches of ``side`` pixels as their cosine coefficients, over a patch's rows, its columns and colors.

    The first three are ``side`` times the patch's mean color, the others its detail. The pixels of a patch go
    together, and a step of Adam is as large in every weight: on raw pixels the mean would drown thin lines.
    """
    if side == 1:
        return images_BHWC
    batch, height, width, _ = images_BHWC.shape
    grid = images_BHWC.reshape(batch, height // side, side, width // side, side, 3)
    basis = jnp.asarray(cosines(side))
    found = jnp.einsum("bhiwjc,ui,vj->bhwuvc", grid, basis, basis)
    return found.reshape(batch, height // side, width // side, side * side * 3)


def synthesise(patches_BHWP: Float[Array, "B h w P"], side: int) -> Float[Array, "B H W 3"]:
    """The inverse of ``analyse``."""
    if side == 1:
        return patches_BHWP
    batch, height, width, _ = patches_BHWP.shape
    basis = jnp.asarray(cosines(side))
    grid = patches_BHWP.reshape(batch, height, width, side, side, 3)
    images = jnp.einsum("bhwuvc,ui,vj->bhiwjc", grid, basis, basis)
    return images.reshape(batch, height * side, width * side, 3)


class Positions(nnx.Module):
    """A learned feature of each place of the grid, added to the input."""

    def __init__(self, side: int, channels: int, *, rngs: nnx.Rngs):
        # Not zero: as large as half a feature, it tells places apart from the first step on.
        initial = nnx.initializers.normal(0.5)
        table = initial(rngs.params(), (side, side, channels), jnp.float32)
        self.table = nnx.Param(table, axes=(None, None, "channels"))

    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The sum, in the input's type."""
        return x_BHWC + self.table[...].astype(x_BHWC.dtype)


class Encoder(nnx.Module):
    """Images in [−1, 1] → a grid of ``size_out`` channels, ``config.reduction`` times smaller."""

    def __init__(self, config: AutoencoderConfig, size_out: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        widths = (config.channels, *config.widths())
        self.config = config
        self.conv_in = convolution(3 * config.stem**2, config.channels, dtype, rngs)
        side = config.image_size // config.stem
        self.positions = Positions(side, config.channels, rngs=rngs) if config.positions else None
        self.levels = nnx.List(
            [
                Level(
                    widths[level],
                    widths[level + 1],
                    config,
                    blocks=config.blocks,
                    attention=level in config.encoder_attention,
                    resample=Halve if level < config.levels - 1 else None,
                    rngs=rngs,
                )
                for level in range(config.levels)
            ]
        )
        self.middle = Middle(widths[-1], config, rngs=rngs)
        self.norm_out = group_norm(widths[-1], config, rngs)
        self.conv_out = convolution(widths[-1], size_out, dtype, rngs)

    def __call__(self, images_BHWC: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """The grid."""
        x = self.conv_in(analyse(images_BHWC - self.config.canvas, self.config.stem))
        x = x if self.positions is None else self.positions(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """A grid of ``size_in`` channels → images, nominally in [−1, 1], float32; ``levels[0]`` is the smallest grid."""

    def __init__(self, config: AutoencoderConfig, size_in: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        widths = config.widths()
        sizes = (*widths, widths[-1])
        self.config = config
        self.conv_in = convolution(size_in, widths[-1], dtype, rngs)
        self.positions = Positions(config.grid, widths[-1], rngs=rngs) if config.positions else None
        self.middle = Middle(widths[-1], config, rngs=rngs)
        self.levels = nnx.List(
            [
                Level(
                    sizes[level + 1],
                    sizes[level],
                    config,
                    blocks=config.blocks + 1,
                    attention=level in config.decoder_attention,
                    resample=Double if level else None,
                    rngs=rngs,
                )
                for level in reversed(range(config.levels))
            ]
        )
        self.norm_out = group_norm(widths[0], config, rngs)
        self.conv_out = convolution(widths[0], 3 * config.stem**2, dtype, rngs)

    def __call__(self, grid_BHWC: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """The images."""
        x = self.conv_in(grid_BHWC)
        x = self.middle(x if self.positions is None else self.positions(x))
        for level in self.levels:
            x = level(x)
        patches = self.conv_out(jax.nn.silu(self.norm_out(x))).astype(jnp.float32)
        return synthesise(patches, self.config.stem) + self.config.canvas


class Autoencoder(Tower):
    """Encoder and decoder, and the projections between them and the latents. As a tower, it gives N tokens per image.

    Attributes:
      tokens: N.
      width: E, of a token.
    """

    def __init__(self, config: AutoencoderConfig, width: int):
        self.tokens = config.grid**2
        self.width = width

    def _make_encoder(self, config: AutoencoderConfig, hidden: int, projected: int, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(config, hidden, rngs=rngs)
        self.quant_conv = projection(hidden, projected, jnp.dtype(config.dtype), rngs)

    def _make_decoder(self, config: AutoencoderConfig, hidden: int, rngs: nnx.Rngs) -> None:
        self.post_quant_conv = projection(self.width, hidden, jnp.dtype(config.dtype), rngs)
        self.decoder = Decoder(config, hidden, rngs=rngs)

    def decode_grid(self, latent_BHWE: Float[Array, "B h w E"]) -> Float[Array, "B H W 3"]:
        """Images, nominally in [−1, 1], of the latents that the decoder was trained on."""
        return self.decoder(self.post_quant_conv(latent_BHWE))

    def to_grid(self, tokens_BNE: Float[Array, "B N E"]) -> Float[Array, "B h w E"]:
        """The square grid of an image's tokens, in reading order."""
        side = round(tokens_BNE.shape[1] ** 0.5)
        return tokens_BNE.reshape(-1, side, side, self.width)
