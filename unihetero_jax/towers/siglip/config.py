"""Settings of the ``siglip`` tower, and the published models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.common.vit.config import TINY, ViTConfig, ViTTowerConfig

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "siglip-base-patch16-224": {},
    "siglip-so400m-patch14-384": {
        "width": 1152,
        "layers": 27,
        "heads": 16,
        "mlp_width": 4304,
        "patch_size": 14,
        "image_size": 384,
    },
    # What configs/towers/siglip.py trains in minutes.
    "siglip-tiny": {**TINY, "width": 128, "layers": 4, "mlp_width": 384},
}


@dataclass(frozen=True)
class SigLIPSizes(ViTConfig):
    """The image side of SigLIP (arXiv 2303.15343)."""

    family: ClassVar[str] = "siglip"
    has_class_token: ClassVar[bool] = False


@TOWERS.section("siglip")
@dataclass(frozen=True)
class SigLIPConfig(ViTTowerConfig, SigLIPSizes):
    """SigLIP's image side (arXiv 2303.15343)."""

    model_types: ClassVar[tuple[str, ...]] = ("siglip", "siglip_vision_model")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
