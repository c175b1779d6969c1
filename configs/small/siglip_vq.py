"""The small twin of configs/pairings/siglip_vq.py: SigLIP reads, VQ draws, at 64 pixels.

    unihetero train --config=configs/small/siglip_vq.py --workdir=runs/small_siglip_vq

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("siglip", "vq16", small=True)
