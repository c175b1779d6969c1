"""The small twin of configs/pairings/siglip_siglip.py: SigLIP reads, SigLIP draws, at 64 pixels.

    unihetero train --config=configs/pairings/siglip_siglip_small.py --workdir=runs/siglip_siglip_small

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("siglip", "siglip", small=True)
