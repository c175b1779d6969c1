"""The small twin of configs/pairings/vq_siglip.py: VQ reads, SigLIP draws, at 64 pixels.

    unihetero train --config=configs/small/vq_siglip.py --workdir=runs/small_vq_siglip

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("vq16", "siglip", small=True)
