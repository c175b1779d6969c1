"""Settings of the ``dinov2`` tower, and the published models.

The numbers are those of each model's ``config.json`` and ``preprocessor_config.json`` on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.common.vit.config import TINY, ViTTowerConfig

_SIZES = {
    "dinov2-small": (384, 12, 6, 1536),
    "dinov2-base": (768, 12, 12, 3072),
    "dinov2-large": (1024, 24, 16, 4096),
    # Two thirds of 4 · 1536, rounded up to a multiple of 8: SwiGLU has three matrices instead of two.
    "dinov2-giant": (1536, 40, 24, 4096),
}


def _published(width: int, layers: int, heads: int, mlp_width: int, registers: int = 0) -> dict[str, Any]:
    return {
        "width": width,
        "layers": layers,
        "heads": heads,
        "mlp_width": mlp_width,
        "patch_size": 14,
        "image_size": 518,
        "registers": registers,
        "swiglu": width == 1536,
        "antialias_positions": registers > 0,
        "input_size": 224,
        "shortest_edge": 256,
    }


@TOWERS.section("dinov2")
@dataclass(frozen=True)
class DINOv2Config(ViTTowerConfig):
    """DINOv2 (arXiv 2304.07193), with registers (arXiv 2309.16588) or without."""

    family: ClassVar[str] = "dinov2"
    has_registers: ClassVar[bool] = True
    model_types: ClassVar[tuple[str, ...]] = ("dinov2", "dinov2_with_registers")
    pixel_mean: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    pixel_std: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{name: _published(*sizes) for name, sizes in _SIZES.items()},
        **{name.replace("v2-", "v2-with-registers-"): _published(*sizes, 4) for name, sizes in _SIZES.items()},
        "dinov2-tiny": TINY,
    }
