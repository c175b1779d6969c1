"""Small packed batches without a dataset."""

from __future__ import annotations

import numpy as np

from unihetero_jax.config import Config
from unihetero_jax.towers.patch import patch_count

VOCABULARY = 64


def random_batch(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Each row: six words, an image that is shown and predicted, and words to the end of the row."""
    chance = np.random.default_rng(seed)
    rows, slots, size = config.train.batch_size, config.data.slots, config.data.image_size
    count, images = patch_count(size, config.model.tower.patch_size), config.data.images_per_row
    visual = slice(6, 6 + count)
    image, patch = np.full((rows, slots), -1, np.int32), np.full((rows, slots), -1, np.int32)
    image[:, visual], patch[:, visual] = 0, np.arange(count)
    text = (image < 0).astype(np.float32)
    role = np.zeros((rows, images), np.int8)
    role[:, 0] = 3
    return {
        "tokens": chance.integers(0, VOCABULARY, (rows, slots), dtype=np.int32),
        "segment": np.ones((rows, slots), np.int32),
        "position": np.broadcast_to(np.arange(slots, dtype=np.int32), (rows, slots)).copy(),
        "image": image,
        "patch": patch,
        "text_weight": text,
        "visual_weight": 1 - text,
        "images": chance.integers(0, 256, (rows, images, size, size, 3), dtype=np.uint8),
        "role": role,
        "skipped": np.zeros((rows,), np.int32),
    }
