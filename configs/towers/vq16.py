"""A small VQ autoencoder on Smart Watch: 64 tokens of 256 codes for 64 pixels a side.

    unihetero towers train vq16 --config=configs/towers/vq16.py --workdir=runs/vq16

2,600 steps in 303 s on two cores. Measured once, seed 0, on a quiet machine (Python 3.11, jax 0.10.2): PSNR 24.5 dB on
200 held-out images, 50% of the codes used, perplexity 97. Discs have their colour, icons are spots of theirs in their
corners and battery bars are green; of the hands a glow near the middle is seen, in the hour hand's direction at best.
After 1,200 steps it was 23.1 dB: steps alone will not bring the hands.
"""

import ml_collections

from unihetero_jax.tower_config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("vq16")
    config.data.smart_watch.num_images = 6_000
    config.data.smart_watch.test_images = 300
    # Absolute errors are least where no hand is drawn at all, as long as it is not known where.
    config.losses.l1 = 0.0
    config.losses.detail = 3.0
    config.losses.commitment = 0.1
    config.losses.unused = 1.0
    config.losses.continuous = 0.5
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 0.3
    config.train.batch_size = 8
    config.train.steps = 6000
    return config
