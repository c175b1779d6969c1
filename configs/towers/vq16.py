"""A small VQ autoencoder on Smart Watch: 64 tokens of 256 codes for 64 pixels a side.

    unihetero towers train vq16 --config=configs/towers/vq16.py --workdir=runs/vq16

1,200 steps are 0.2 s of CPU time each, about 250 s in all: some minutes on two cores to itself. Measured once, seed 0,
on two cores shared with five other jobs (928 s): PSNR 23.1 dB on 200 held-out images, 52% of the codes used, perplexity
78. Discs have their colour and icons are in their corners, as spots; of the hands only the middle is seen yet. The loss
was still falling.
"""

import ml_collections

from unihetero_jax.tower_config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("vq16")
    config.data.smart_watch.num_images = 6_000
    config.data.smart_watch.test_images = 300
    # Three times that is worse: after 100 steps the squared error is twice as large.
    config.optimizer.learning_rate = 1e-3
    config.train.batch_size = 8
    config.train.steps = 1200
    return config
