"""The small twin of configs/pairings/vq_vq.py: VQ reads, VQ draws, at 64 pixels.

    unihetero train --config=configs/pairings/vq_vq_small.py --workdir=runs/vq_vq_small

200 steps, seed 0, random towers, with the data order and the small towers of an earlier version: loss 8.67 to 1.79 in
124 s on two cores shared with ten other jobs. It draws pictures, of random towers as long as config.init names none.
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("vq16", "vq16", small=True)
