"""The small twin of configs/pairings/clip_vq.py: CLIP reads, VQ draws, at 64 pixels.

    unihetero train --config=configs/small/clip_vq.py --workdir=runs/small_clip_vq

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("clip", "vq16", small=True)
