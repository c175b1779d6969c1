"""A small KL autoencoder on Smart Watch: 64 latents of 16 channels for 64 pixels a side.

    unihetero towers train kl16 --config=configs/towers/kl16.py --workdir=runs/kl16

5,000 steps take 293 s of CPU time; on two cores to itself it is not timed yet. Measured once, seed 0, on a third of one
core, shared with other work (1,030 s; Python 3.11, jax 0.10.2): PSNR 32.0 dB on 200 held-out images, standard deviation
of the latents 1.88 (latent_scale 0.531). All three hands are lines in the right direction, the second faintest;
weather icons and the battery's fill are plain to see. Discs are a little grainy.
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.small_tower("kl16")
