"""A small KL autoencoder on Smart Watch: 64 latents of 16 channels for 64 pixels a side.

    unihetero towers train kl16 --config=configs/towers/kl16.py --workdir=runs/kl16

5,000 steps take 293 s of CPU time; on two cores to itself it is not timed yet. Measured once, seed 0, on a third of one
core, shared with other work (1,030 s; Python 3.11, jax 0.10.2): PSNR 32.0 dB on 200 held-out images, standard deviation
of the latents 1.88 (latent_scale 0.531). All three hands are lines in the right direction, the second faintest;
weather icons and the battery's fill are plain to see. Discs are a little grainy.
"""

import ml_collections

from unihetero_jax.tower_config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("kl16")
    config.data.smart_watch.num_images = 6_000
    config.data.smart_watch.test_images = 300
    # Absolute errors are least where no hand is drawn at all, as long as it is not known where.
    config.losses.l1 = 0.0
    config.losses.detail = 3.0
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 0.3
    config.train.batch_size = 8
    config.train.steps = 5000
    return config
