"""The main job at laptop size: mixed training (paper B) with semantic autoregression on Smart Watch."""

import ml_collections

from unihetero_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    config.data.smart_watch.num_images = 12_000
    config.data.smart_watch.test_images = 500
    config.data.slots = 128
    config.data.images_per_row = 2
    config.model.decoder.dtype = "float32"
    config.train.batch_size = 128
    config.train.steps = 300
    return config
