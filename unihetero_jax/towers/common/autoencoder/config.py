"""Sizes of the image autoencoders and weights of their losses. No JAX here: the config tree imports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unihetero_jax.config.constraints import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class AutoencoderConfig:
    """A convolutional encoder and decoder; every level but the last halves the grid.

    Attributes:
      image_size: pixels per side that images are resized to.
      stem: pixels per side of the patches that are the places of level 0 (see ``blocks.analyse``); 1: single pixels,
        as published.
      canvas: gray level, in [−1, 1], that is 0 to the network.
      positions: learn a feature for each place of encoder and decoder, so that codes need not describe what never
        moves; published models have none.
      channels: width of level 0 where its multiplier is 1.
      multipliers: width of each level, as a multiple of ``channels``.
      blocks: residual blocks per level of the encoder; the decoder has one more, as published.
      encoder_attention: levels of the encoder whose residual blocks are each followed by attention over the grid.
      decoder_attention: levels of the decoder, likewise.
      groups: groups of every group norm; divides ``channels``.
      norm_epsilon: epsilon of the group norms.
      dtype: type of activations and convolutions; parameters, norms and softmax are float32 either way.
    """

    image_size: int = 256
    stem: int = 1
    canvas: float = 0.0
    positions: bool = False
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: PositiveInt = 2
    encoder_attention: tuple[int, ...] = (4,)
    decoder_attention: tuple[int, ...] = (4,)
    groups: int = 32
    norm_epsilon: PositiveFloat = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> None:
            raise UsageError(f"{type(self).__name__}.{name}={getattr(self, name)}: expected {expected}")

        if not self.multipliers:
            refuse("multipliers", "a width for at least one level")
        if self.channels < 1 or self.groups < 1 or self.channels % self.groups:
            refuse("channels", f"a multiple of groups={self.groups}, into which its norms divide them")
        if self.stem < 1:
            refuse("stem", "1 or more pixels")
        if self.image_size < 1 or self.image_size % self.reduction:
            refuse("image_size", f"a multiple of {self.reduction}, by which stem and {self.levels} levels reduce it")
        for name in ("encoder_attention", "decoder_attention"):
            if any(level not in range(self.levels) for level in getattr(self, name)):
                refuse(name, f"levels 0 to {self.levels - 1}")

    @property
    def levels(self) -> int:
        """Grids of different size."""
        return len(self.multipliers)

    @property
    def reduction(self) -> int:
        """Pixels of the image along one side of a latent."""
        return self.stem * 2 ** (self.levels - 1)

    @property
    def grid(self) -> int:
        """Latents along one side of an image."""
        return self.image_size // self.reduction

    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)


def encoder_flops(config: AutoencoderConfig, projected: int) -> float:
    """Return the forward FLOPs per image of an encoder: 3x3 convolutions, and attention over the smallest grids.

    Args:
      config: of the autoencoder.
      projected: channels that the last convolution gives.
    """
    side = config.image_size // config.stem
    widths = config.widths()
    total = 2.0 * _meetings(side) * (3 * config.stem**2) * config.channels
    here = config.channels
    for level, width in enumerate(widths):
        for _ in range(config.blocks):
            total += _residual(side, here, width)
            here = width
            if level in config.encoder_attention:
                total += _grid_attention(side, here)
        if level < config.levels - 1:
            side //= 2
            # Padded on one side alone.
            total += 2.0 * (3 * side - 1) ** 2 * here**2
    total += 2 * _residual(side, here, here) + _grid_attention(side, here)
    return total + 2.0 * _meetings(side) * here * projected


def _residual(side: int, size_in: int, size_out: int) -> float:
    skip = size_in * size_out if size_in != size_out else 0
    return 2.0 * (_meetings(side) * (size_in + size_out) * size_out + side**2 * skip)


def _meetings(side: int) -> int:
    """Places where a 3x3 kernel meets a grid that is padded by one: the padding's products are not computed."""
    return (3 * side - 2) ** 2


def _grid_attention(side: int, channels: int) -> float:
    return 8.0 * side**2 * channels**2 + 4.0 * side**4 * channels


@dataclass(frozen=True)
class VQConfig(AutoencoderConfig):
    """LlamaGen's VQ-16 (arXiv 2406.06525); the defaults are its published sizes.

    Attributes:
      hidden: channels between the encoder and the projection to a code.
      code_width: width of a code.
      codes: entries of the codebook.
    """

    family: ClassVar[str] = "vq16"

    hidden: PositiveInt = 256
    code_width: PositiveInt = 8
    codes: PositiveInt = 16_384


@dataclass(frozen=True)
class KLConfig(AutoencoderConfig):
    """MAR's KL-16 (arXiv 2406.11838); the defaults are its published sizes.

    Attributes:
      decoder_attention: levels of the decoder whose residual blocks are each followed by attention; empty: attention
        at the lowest level's middle only.
      latent: channels of a latent.
      latent_scale: factor on latents that are a tower's features, so that their standard deviation is about 1.
    """

    family: ClassVar[str] = "kl16"

    decoder_attention: tuple[int, ...] = ()
    latent: PositiveInt = 16
    latent_scale: PositiveFloat = 0.2325


@dataclass(frozen=True)
class VQLossConfig:
    """Weights of the losses that train a VQ autoencoder (``losses.vq_loss_sums``); 0 leaves one out.

    Attributes:
      l1: weight of the absolute error of pixels.
      l2: weight of the squared error of pixels.
      detail: weight of the squared error of differences between neighboring pixels (ours).
      codebook: weight of the distance that moves codes to latents.
      commitment: weight of the distance that moves latents to codes; LlamaGen's.
      unused: weight of the distance between codes that a batch does not use and its latents (ours).
      continuous: share of the images that are decoded without quantization in training, as in Moshi's codec (arXiv
        2410.00037, section 3.3).
    """

    l1: NonNegativeFloat = 1.0
    l2: NonNegativeFloat = 1.0
    detail: NonNegativeFloat = 0.0
    codebook: NonNegativeFloat = 1.0
    commitment: NonNegativeFloat = 0.25
    unused: NonNegativeFloat = 0.0
    continuous: Fraction = 0.0


@dataclass(frozen=True)
class KLLossConfig:
    """Weights of the losses that train a KL autoencoder (``losses.kl_loss_sums``); 0 leaves one out.

    Attributes:
      l1: weight of the absolute error of pixels.
      l2: weight of the squared error of pixels.
      detail: weight of the squared error of differences between neighboring pixels (ours).
      kl: weight of the posterior's divergence from a standard normal; latent diffusion's (arXiv 2112.10752).
    """

    l1: NonNegativeFloat = 1.0
    l2: NonNegativeFloat = 1.0
    detail: NonNegativeFloat = 0.0
    kl: NonNegativeFloat = 1e-6


# Unpublished twins for experiments on a laptop: 64 pixels per side and 64 tokens, because 16 are too coarse for the
# hands of a watch. All layers work on the tokens' grid: convolutions at full size take most of a CPU's time. Four
# channels per group, as published: with one, a norm removes the color. Most of a picture is white, the canvas.
_TINY: dict[str, Any] = {
    "image_size": 64,
    "stem": 8,
    "canvas": 1.0,
    "positions": True,
    "channels": 64,
    "multipliers": (1,),
    "blocks": 1,
    "groups": 16,
    "encoder_attention": (),
    "decoder_attention": (),
}

VQ16 = VQConfig()
VQ16_TINY = VQConfig(**_TINY, hidden=64, codes=512)
KL16 = KLConfig()
KL16_TINY = KLConfig(**_TINY, latent_scale=1.0)
