"""A small VQ autoencoder on Smart Watch: 64 tokens of 512 codes for 64 pixels a side.

    unihetero towers train vq16 --config=configs/towers/vq16.py --workdir=runs/vq16

6,000 steps take 366 s of CPU time with the data's building; on two cores to itself it is not timed yet. Measured once,
seed 0, on less than half of one core, shared with other work (872 s; Python 3.11, jax 0.10.2): PSNR 29.1 dB on 200
held-out images, 69% of the codes used, perplexity 213. Hour and minute hands are lines in the right direction, the thin
second hand is fainter and now and then doubtful, as are hands that nearly coincide; battery bars show their fill, and
sun, cloud and rain are plain to tell. Discs are a little grainy.
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
    # With the published ones a third of the codes was in use after 300 steps; and the hands came later.
    config.losses.commitment = 0.1
    config.losses.unused = 1.0
    config.losses.continuous = 0.5
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 0.3
    config.train.batch_size = 8
    config.train.steps = 6000
    return config
