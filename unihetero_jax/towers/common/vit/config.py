"""What a vision transformer is made of, as data: one dataclass, and the published models by name.

The numbers are those of each model's ``config.json`` and ``preprocessor_config.json`` on the Hugging Face hub.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from unihetero_jax.errors import UsageError

Family = Literal["dinov2", "siglip", "clip"]


@dataclass(frozen=True)
class ViTSection:
    """A vision transformer used as a tower, of whatever family.

    Architecture: ``image_size`` is the one whose grid the position table was trained on; ``registers`` and ``swiglu``
    are DINOv2's; ``antialias_positions``: how the table is resized to other grids, as the publisher does.

    Use: ``input_size``: pixels a side that the tower works on (0: ``image_size``). ``shortest_edge``: the shorter side
    of an image is resized to this, then the middle is cut out; 0 shows the tower the whole image, squeezed to a square.
    ``layer``: −1 the published last hidden state, −2 the block before the last, and so on. ``class_token``: keep it in
    front of the patches' features. ``dtype``: activations and matrix products; norms and softmax are float32 either
    way. ``param_dtype``: how parameters are held. ``remat``: ``full`` keeps only each block's input for the
    backward pass of a trainable tower.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    patch_size: int = 16
    image_size: int = 224
    registers: int = 0
    swiglu: bool = False
    antialias_positions: bool = False
    norm_epsilon: float = 1e-6
    input_size: int = 0
    shortest_edge: int = 0
    layer: int = -1
    class_token: bool = False
    dtype: Literal["bfloat16", "float32"] = "float32"
    param_dtype: Literal["bfloat16", "float32"] = "float32"
    remat: Literal["none", "full"] = "none"


@dataclass(frozen=True)
class ViTConfig(ViTSection):
    """A vision transformer of a family; ``ViTSection`` says what the fields are."""

    family: Family = "siglip"

    @property
    def side(self) -> int:
        """Pixels a side of what the tower works on."""
        return self.input_size or self.image_size

    @property
    def tokens(self) -> int:
        """Visual tokens an image; pixels right and below of the last whole patch are not seen."""
        return (self.side // self.patch_size) ** 2 + self.class_token


def _dinov2(width: int, layers: int, heads: int, mlp_width: int, *, registers: int = 0) -> ViTConfig:
    return ViTConfig(
        family="dinov2",
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=mlp_width,
        patch_size=14,
        image_size=518,
        registers=registers,
        swiglu=width == 1536,
        antialias_positions=registers > 0,
        input_size=224,
        shortest_edge=256,
    )


_DINOV2_SIZES = {
    "dinov2-small": (384, 12, 6, 1536),
    "dinov2-base": (768, 12, 12, 3072),
    "dinov2-large": (1024, 24, 16, 4096),
    # Two thirds of 4 · 1536, rounded up to a multiple of 8: SwiGLU has three matrices instead of two.
    "dinov2-giant": (1536, 40, 24, 4096),
}

_CLIP_LARGE = ViTConfig(
    family="clip", width=1024, layers=24, heads=16, mlp_width=4096, patch_size=14, norm_epsilon=1e-5, shortest_edge=224
)


def _tiny(family: Family) -> ViTConfig:
    """A twin for experiments on a laptop, nobody's publication: 64 pixels a side, 16 tokens."""
    return ViTConfig(family=family, width=64, layers=3, heads=4, mlp_width=192, patch_size=16, image_size=64)


PRESETS: dict[str, ViTConfig] = {
    **{name: _dinov2(*sizes) for name, sizes in _DINOV2_SIZES.items()},
    **{name.replace("v2-", "v2-with-registers-"): _dinov2(*s, registers=4) for name, s in _DINOV2_SIZES.items()},
    "siglip-base-patch16-224": ViTConfig(),
    "siglip-so400m-patch14-384": ViTConfig(
        width=1152, layers=27, heads=16, mlp_width=4304, patch_size=14, image_size=384
    ),
    "clip-vit-large-patch14": _CLIP_LARGE,
    "clip-vit-large-patch14-336": dataclasses.replace(_CLIP_LARGE, image_size=336, shortest_edge=336),
    **{f"{family}-tiny": _tiny(family) for family in ("dinov2", "clip")},
    # What configs/towers/siglip.py trains in minutes.
    "siglip-tiny": dataclasses.replace(_tiny("siglip"), width=128, layers=4, mlp_width=384),
}


def check_vit(config: ViTConfig, key: str) -> None:
    """Refuses a vision transformer that cannot be built.

    Args:
      config: what was asked for.
      key: where it was asked for, such as ``config.model.tower``.

    Raises:
      UsageError: naming the key, what was expected and what would be right.
    """
    for name in ("width", "layers", "heads", "mlp_width", "patch_size", "image_size"):
        if getattr(config, name) < 1:
            raise UsageError(f"{key}.{name}={getattr(config, name)}; expected at least 1")
    if config.width % config.heads:
        raise UsageError(f"{key}.heads={config.heads} does not divide {key}.width={config.width}")
    if config.side < config.patch_size:
        raise UsageError(f"{key}.input_size={config.side} is smaller than one patch of {config.patch_size} pixels")
    if config.shortest_edge and config.shortest_edge < config.side:
        raise UsageError(
            f"{key}.shortest_edge={config.shortest_edge}: expected 0 or at least {config.side}, which is cut out of it"
        )
    if not -config.layers - 1 <= config.layer <= -1:
        raise UsageError(
            f"{key}.layer={config.layer}; expected −1 (the last) to {-config.layers - 1} (the embeddings), counted "
            "from the end"
        )
    if config.family != "dinov2" and (config.registers or config.swiglu):
        raise UsageError(f"{key}.registers and {key}.swiglu belong to dinov2; {key}.family is {config.family}")
    if config.family == "siglip" and config.class_token:
        raise UsageError(f"{key}.class_token=true: siglip has no class token; expected false")
