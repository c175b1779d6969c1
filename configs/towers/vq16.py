"""A small VQ autoencoder on Smart Watch: 64 tokens of 512 codes for 64 pixels a side.

    unihetero towers train vq16 --config=configs/towers/vq16.py --workdir=runs/vq16

6,000 steps take 366 s of CPU time with the data's building; on two cores to itself it is not timed yet. Measured once,
seed 0, on less than half of one core, shared with other work (872 s; Python 3.11, jax 0.10.2): PSNR 29.1 dB on 200
held-out images, 69% of the codes used, perplexity 213. Hour and minute hands are lines in the right direction, the thin
second hand is fainter and now and then doubtful, as are hands that nearly coincide; battery bars show their fill, and
sun, cloud and rain are plain to tell. Discs are a little grainy.
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.small_tower("vq16")
