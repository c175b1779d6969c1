"""What a vision transformer is made of, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from unihetero_jax.config.components import TowerConfig
from unihetero_jax.config.constraints import NonNegativeInt, PositiveFloat, PositiveInt
from unihetero_jax.config.section_presets import completed
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer: its architecture, and how it is used.

    Attributes:
      width: D, of the residual stream.
      layers: blocks.
      heads: attention heads; divide ``width``.
      mlp_width: width of a block's hidden layer.
      patch_size: pixels per side of a patch.
      image_size: pixels per side of the image whose grid the position table was trained on.
      registers: register tokens (DINOv2, arXiv 2309.16588).
      swiglu: whether a block's MLP is a SwiGLU (DINOv2 giant).
      antialias_positions: whether the position table is resized to other grids with antialiasing, as the publisher
        does.
      norm_epsilon: epsilon of the layer norms.
      input_size: pixels per side that the tower works on; 0: ``image_size``.
      shortest_edge: the shorter side of an image is resized to this and the center is cut out; 0 squeezes the whole
        image to a square.
      layer: −1 the published last hidden state, −2 the output of the block before the last, and so on.
      class_token: whether to put the class token in front of the patches' features.
      dtype: type of activations and matrix products; norms and softmax are float32 either way.
      param_dtype: that parameters are stored in.
      remat: ``full`` keeps only each block's input for the backward pass of a trained tower.
    """

    # Whose architecture it is: registers and swiglu are DINOv2's, SigLIP has no class token.
    family: ClassVar[str] = ""
    has_class_token: ClassVar[bool] = True
    has_registers: ClassVar[bool] = False
    # Normalization of pixels in [0, 1], by channel.
    pixel_mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    pixel_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    width: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072
    patch_size: PositiveInt = 16
    image_size: PositiveInt = 224
    registers: NonNegativeInt = 0
    swiglu: bool = False
    antialias_positions: bool = False
    norm_epsilon: PositiveFloat = 1e-6
    input_size: NonNegativeInt = 0
    shortest_edge: NonNegativeInt = 0
    layer: int = -1
    class_token: bool = False
    dtype: Literal["bfloat16", "float32"] = "float32"
    param_dtype: Literal["bfloat16", "float32"] = "float32"
    remat: Literal["none", "full"] = "none"

    @property
    def side(self) -> int:
        """Pixels per side of what the tower works on."""
        return self.input_size or self.image_size

    @property
    def token_count(self) -> int:
        """Visual tokens per image; pixels right and below of the last whole patch are cut off."""
        return (self.side // self.patch_size) ** 2 + self.class_token

    @property
    def forward_flops(self) -> float:
        """FLOPs of the forward pass per image, up to the layer that is read."""
        patches = (self.side // self.patch_size) ** 2
        tokens = patches + self.registers + self.has_class_token
        width, depth = self.width, self.layers + self.layer + 1
        matrices = 4 * width**2 + (3 if self.swiglu else 2) * width * self.mlp_width
        block = 2.0 * tokens * matrices + 4.0 * tokens**2 * width
        return depth * block + 2.0 * patches * self.patch_size**2 * 3 * width

    def check(self, key: str) -> None:
        """Refuse sizes that contradict each other."""
        if self.width % self.heads:
            raise UsageError(f"{key}.heads={self.heads} does not divide {key}.width={self.width}")
        if self.side < self.patch_size:
            raise UsageError(f"{key}.input_size={self.side} is smaller than one patch of {self.patch_size} pixels")
        if self.shortest_edge and self.shortest_edge < self.side:
            raise UsageError(
                f"{key}.shortest_edge={self.shortest_edge}: expected 0 or at least {self.side}, which is cut out of it"
            )
        if not -self.layers - 1 <= self.layer <= -1:
            raise UsageError(
                f"{key}.layer={self.layer}: expected −1 (the last) to {-self.layers - 1} (the embeddings), counted "
                "from the end"
            )
        if not self.has_registers and (self.registers or self.swiglu):
            raise UsageError(f"{key}.registers and {key}.swiglu belong to dinov2; this is {self.family}")
        if not self.has_class_token and self.class_token:
            raise UsageError(f"{key}.class_token=True: {self.family} has no class token; expected False")


# With a preset, these say how it is used; all other fields are what the preset fixes.
USE = ("input_size", "layer", "class_token", "dtype", "param_dtype", "remat")


@dataclass(frozen=True)
class ViTTowerConfig(TowerConfig, ViTConfig):
    """A vision transformer as a tower.

    Attributes:
      preset: a published model, whose sizes it fixes; empty: the sizes below.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    preset: str = ""

    def completed(self, key: str) -> Self:
        """The section with the preset's sizes."""
        made = completed(self, TowerConfig, self.presets, USE, key)
        published = self.presets.get(self.preset, {}).get("input_size", 0)
        return dataclasses.replace(made, input_size=made.input_size or published)

    def check(self, key: str) -> None:
        """Refuse sizes that contradict each other."""
        TowerConfig.check(self, key)
        ViTConfig.check(self, key)

    def tokens(self, image_size: int, key: str) -> int:
        """Visual tokens per image, which is resized to what the tower works on."""
        del image_size, key
        return self.token_count

    @property
    def features(self) -> int:
        """Width of a feature."""
        return self.width

    def flops(self, image_size: int) -> float:
        """FLOPs of the forward pass per image."""
        del image_size
        return self.forward_flops


# Sizes of a twin for experiments on a laptop, published by nobody: 64 pixels per side, 16 tokens.
TINY: Mapping[str, Any] = {
    "width": 64,
    "layers": 3,
    "heads": 4,
    "mlp_width": 192,
    "patch_size": 16,
    "image_size": 64,
}
