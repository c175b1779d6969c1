"""The small twin of configs/pairings/clip_clip.py: CLIP reads, CLIP draws, at 64 pixels.

    unihetero train --config=configs/pairings/clip_clip_small.py --workdir=runs/clip_clip_small

TIME
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("clip", "clip", small=True)
