"""The small twin of configs/pairings/vq_siglip.py: VQ reads, SigLIP draws, at 64 pixels.

    unihetero train --config=configs/pairings/vq_siglip_small.py --workdir=runs/vq_siglip_small

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("vq16", "siglip", small=True)
