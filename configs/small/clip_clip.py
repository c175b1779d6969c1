"""The small twin of configs/pairings/clip_clip.py: CLIP reads, CLIP draws, at 64 pixels.

    unihetero train --config=configs/small/clip_clip.py --workdir=runs/small_clip_clip

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("clip", "clip", small=True)
