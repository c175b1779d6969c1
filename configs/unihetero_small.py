"""The small twin of configs/unihetero.py at 64 pixels: semantics on the input embedding, a diffusion head behind it.

    unihetero train --config=configs/unihetero_small.py --workdir=runs/unihetero_small

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.unihetero(small=True)
