"""A small SigLIP pair on Smart Watch: whole-image captions that state the time and everything else.

unihetero towers train siglip --config=configs/towers/siglip.py --workdir=runs/siglip
"""

import ml_collections

from unihetero_jax.tower_config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("siglip")
    config.data.smart_watch.num_images = 6_000
    config.data.smart_watch.test_images = 300
    config.data.slots = 48
    config.optimizer.learning_rate = 2e-3
    config.train.batch_size = 64
    config.train.steps = 1000
    config.checkpoint.every_steps = 200
    config.evaluate.images = 300
    return config
