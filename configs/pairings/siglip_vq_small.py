"""The small twin of configs/pairings/siglip_vq.py: SigLIP reads, VQ draws, at 64 pixels.

    unihetero train --config=configs/pairings/siglip_vq_small.py --workdir=runs/siglip_vq_small

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("siglip", "vq16", small=True)
