"""Real pictures: a small unified model that names emojis, and draws them by their names."""

import ml_collections

from unihetero_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    # A caption is as often read off its picture as it is turned round, into a request for it.
    config.data.sources = {"emoji": {"root": "data/emoji/folder", "turn_round": 0.5}}
    config.data.slots = 160
    config.data.images_per_row = 4
    config.model.decoder.width = 128
    config.model.decoder.heads = 4
    config.model.decoder.kv_heads = 4
    config.model.decoder.mlp_width = 384
    config.model.decoder.dropout = 0.1
    config.model.decoder.dtype = "float32"
    config.model.decoder.tie_embeddings = False
    config.model.decoder.logit_scale = 1.0
    # What is transparent is white: white becomes zero, and a patch is what is drawn on it.
    config.model.understanding_tower.patch.pixel_mean = 1.0
    config.model.understanding_tower.patch.width = 128
    config.objectives.pixel.width = 384
    config.objectives.semantic.weight = 1.0
    config.optimizer.learning_rate = 2e-3
    config.evaluate.pictures = 8
    config.train.batch_size = 32
    config.train.steps = 600
    return config
