"""Sizes of the image autoencoders and weights of their losses. No JAX here: the config tree imports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unihetero_jax.config.constraints import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class AutoencoderConfig:
    """A convolutional encoder and decoder; each level halves the grid but the last.

    ``image_size``: pixels a side that a tower resizes to. ``stem``: pixels a side of the patches that are the places of
    level 0, see ``conv_blocks.analyse``; 1, the pixels themselves, as published. ``canvas``: the grey level, in [−1,
    1], that is zero to the network. ``positions``: encoder and decoder learn a feature of each place, so that codes
    need not be spent on what never moves; published models have none. ``channels`` · ``multipliers[level]``: width of a
    level. ``blocks``: residual blocks a level of the encoder; the decoder has one more, as published.
    ``encoder_attention`` and ``decoder_attention``: levels whose residual blocks are each followed by attention over
    the grid. ``groups``: of every group norm. ``dtype``: activations and convolutions; parameters, norms and softmax
    are float32 either way.
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
    """Forward FLOPs an image of a convolutional encoder: 3x3 convolutions, and attention over the smallest grids.

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

    ``hidden``: channels between the encoder and the projection to a code. ``code_width`` and ``codes``: the codebook.
    """

    family: ClassVar[str] = "vq16"

    hidden: PositiveInt = 256
    code_width: PositiveInt = 8
    codes: PositiveInt = 16_384


@dataclass(frozen=True)
class KLConfig(AutoencoderConfig):
    """MAR's KL-16 (arXiv 2406.11838); the defaults are its published sizes.

    Its decoder has attention in the middle alone. ``latent``: channels of a latent. ``latent_scale``: factor on latents
    where they are a tower's features, so that their standard deviation is about 1.
    """

    family: ClassVar[str] = "kl16"

    decoder_attention: tuple[int, ...] = ()
    latent: PositiveInt = 16
    latent_scale: PositiveFloat = 0.2325


@dataclass(frozen=True)
class VQLossConfig:
    """Factors of the losses that train a VQ autoencoder; ``commitment`` is LlamaGen's.

    ``detail`` and ``unused`` are ours, see ``vq_loss_sums``; at 0 they are not computed. ``continuous``: share of the
    images that are decoded without quantisation while training, as in Moshi's codec (arXiv 2410.00037, section 3.3).
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
    """Factors of the losses that train a KL autoencoder; ``kl`` is latent diffusion's (arXiv 2112.10752).

    ``detail`` is ours, see ``kl_loss_sums``; at 0 it is not computed.
    """

    l1: NonNegativeFloat = 1.0
    l2: NonNegativeFloat = 1.0
    detail: NonNegativeFloat = 0.0
    kl: NonNegativeFloat = 1e-6


# Twins for experiments on a laptop, nobody's publication: 64 pixels a side and 64 tokens, because 16 are too coarse for
# the hands of a watch. All happens on the tokens' grid: convolutions at full size take most of a CPU's time. Four
# channels a group, as published: with one, a norm takes out what colour there is. Most of a picture is white.
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
