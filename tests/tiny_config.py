"""The smallest config that still has every part, and random parameters for a model of it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from unihetero_jax.config import Config, resolve
from unihetero_jax.config.tree import nested

TINY: dict[str, Any] = {
    "data.image_size": 32,
    "data.seq_len": 160,
    "data.images_per_row": 2,
    "data.smart_watch.num_images": 16,
    "data.smart_watch.test_images": 8,
    "model.decoder.width": 32,
    "model.decoder.layers": 2,
    "model.decoder.heads": 4,
    "model.decoder.kv_heads": 2,
    "model.decoder.mlp_width": 64,
    "model.decoder.dtype": "float32",
    "model.understanding_tower.patch_size": 8,
    "model.understanding_tower.width": 24,
    "losses.pixel.width": 32,
    "evaluate.questions": 6,
    "evaluate.images": 6,
    "evaluate.pictures": 3,
    "evaluate.batch_size": 8,
}


def tiny_config(**changes: Any) -> Config:
    return resolve(nested({**TINY, **changes}))


def random_params(shapes: Any, seed: int = 0) -> Any:
    """Parameters drawn by NumPy, because compiling a model's true start takes longer than most tests."""
    generator = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = float("scale" in jax.tree_util.keystr(path))
        return np.asarray(mean + generator.normal(0.0, 0.2, leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)
