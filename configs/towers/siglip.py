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
    config.optimizer.learning_rate = 1e-3
    # At the published 10 a true pair would hardly get beyond even odds in so few steps: the scale moves slowly.
    config.losses.scale = 20.0
    config.train.batch_size = 128
    config.train.steps = 800
    config.checkpoint.every_steps = 50
    config.evaluate.images = 300
    return config
