"""The small twin of configs/pairings/clip_vq.py: CLIP reads, VQ draws, at 64 pixels.

    unihetero train --config=configs/pairings/clip_vq_small.py --workdir=runs/clip_vq_small

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("clip", "vq16", small=True)
