"""A small VQ autoencoder on Smart Watch.

unihetero towers train siglip --config=configs/towers/siglip.py --workdir=runs/siglip
"""

import ml_collections

from unihetero_jax.tower_config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("siglip")
    return config
