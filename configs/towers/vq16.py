"""A small VQ autoencoder on Smart Watch.

unihetero towers train vq16 --config=configs/towers/vq16.py --workdir=runs/vq16
"""

import ml_collections

from unihetero_jax.tower_config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("vq16")
    return config
