"""A small autoencoder.

unihetero towers train kl16 --config=configs/towers/kl16.py --workdir=runs/kl16
"""

import ml_collections

from unihetero_jax.tower_config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("kl16")
    config.data.smart_watch.num_images = 6_000
    config.data.smart_watch.test_images = 300
    config.optimizer.learning_rate = 1e-3
    config.train.batch_size = 8
    config.train.steps = 1200
    config.checkpoint.every_steps = 100
    return config
