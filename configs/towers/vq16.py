"""A small VQ autoencoder on Smart Watch: 64 tokens of 512 codes for 64 pixels a side.

    unihetero towers train vq16 --config=configs/towers/vq16.py --workdir=runs/vq16

Measured on 2026-11-21, seed 0, on two cores (AMD EPYC, Python 3.11, jax 0.10.2): 278 s with the data's building, a test
of 65 s beside it. 6,000 steps: PSNR 29.2 dB on 200 held-out images, 63% of the codes used, perplexity 209. Hour and
minute hands are lines in the right direction, the thin second hand is fainter and now and then doubtful, as are hands
that nearly coincide; battery bars show their fill, and sun, cloud and rain are plain to tell. Discs are grainy.
"""

import ml_collections

from unihetero_jax.train.towers.base import small_tower


def get_config() -> ml_collections.ConfigDict:
    return small_tower("vq16")
