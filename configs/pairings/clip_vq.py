"""Paper B at full size: CLIP reads, VQ draws, with Vicuna-7B; LLaVA-1.5's second stage, 6,761 steps.

    unihetero train --config=configs/pairings/clip_vq.py --workdir=runs/clip_vq

with --config.init.path=vicuna-7b-v1.5 --config.init.tokenizer=true for the decoder, and
--config.init.understanding_tower and --config.init.generation_tower for the towers. Not run yet: it needs
accelerators and published weights. Its small twin is configs/pairings/clip_vq_small.py.
"""

import ml_collections

from unihetero_jax.config import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("clip", "vq16")
