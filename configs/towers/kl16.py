"""A small VQ autoencoder on Smart Watch.

unihetero towers train kl16 --config=configs/towers/kl16.py --workdir=runs/kl16
"""

import ml_collections

from unihetero_jax.tower_config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("kl16")
    return config
