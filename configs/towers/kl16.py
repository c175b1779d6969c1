"""A small KL autoencoder on Smart Watch: 64 latents of 16 channels for 64 pixels a side.

    unihetero towers train kl16 --config=configs/towers/kl16.py --workdir=runs/kl16

1,200 steps are 0.2 s of CPU time each, about 250 s in all: some minutes on two cores to itself. Measured once, seed 0,
on two cores shared with five other jobs (1,053 s): PSNR 24.7 dB on 200 held-out images, standard deviation of the
latents 1.42 (latent_scale 0.706). Discs have their colour, battery bars and icons are told apart as spots, hour hands
point where they should, blurred; second hands are not seen yet. The loss was still falling.
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
