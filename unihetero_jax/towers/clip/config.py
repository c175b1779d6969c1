"""Settings of the ``clip`` tower, and the published models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unihetero_jax.config.components import TOWERS
from unihetero_jax.towers.common.vit.config import TINY, ViTTowerConfig

_LARGE = {
    "width": 1024,
    "layers": 24,
    "heads": 16,
    "mlp_width": 4096,
    "patch_size": 14,
    "norm_epsilon": 1e-5,
    "shortest_edge": 224,
}


@TOWERS.section("clip")
@dataclass(frozen=True)
class CLIPConfig(ViTTowerConfig):
    """The image side of OpenAI's CLIP (arXiv 2103.00020)."""

    family: ClassVar[str] = "clip"
    model_types: ClassVar[tuple[str, ...]] = ("clip", "clip_vision_model")
    pixel_mean: ClassVar[tuple[float, float, float]] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: ClassVar[tuple[float, float, float]] = (0.26862954, 0.26130258, 0.27577711)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clip-vit-large-patch14": _LARGE,
        "clip-vit-large-patch14-336": {**_LARGE, "image_size": 336, "shortest_edge": 336},
        "clip-tiny": TINY,
    }
