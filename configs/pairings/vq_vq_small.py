"""The small twin of configs/pairings/vq_vq.py: VQ reads, VQ draws, at 64 pixels.

    unihetero train --config=configs/pairings/vq_vq_small.py --workdir=runs/vq_vq_small

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("vq16", "vq16", small=True)
