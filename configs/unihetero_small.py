"""The small twin of configs/unihetero_7b.py at 64 pixels: semantics on the input embedding, a diffusion head behind it.

    unihetero train --config=configs/unihetero_small.py --workdir=runs/unihetero_small

200 steps, seed 0, random towers, with the data order and the small towers of an earlier version: loss 10.37 to 2.02 in
163 s on two cores shared with ten other jobs. It draws pictures, of random towers as long as config.init names none.
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.unihetero("small")
