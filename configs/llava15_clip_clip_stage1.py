"""Paper B's LLaVA-1.5, first stage: CLIP reads, CLIP draws; adapters and visual head learn beside a frozen Vicuna-7B.

    unihetero train --config=configs/llava15_clip_clip_stage1.py --workdir=runs/llava15_clip_clip_stage1

with --config.init.path=vicuna-7b-v1.5 --config.init.tokenizer=true for the decoder, and
--config.init.understanding_tower for the tower; 150k requests for pictures and the 558k pairs of LLaVA's alignment.
The second stage is configs/llava15_clip_clip.py. Not run yet: it needs accelerators and published weights; its plan
for one node of eight H100 is in configs/plans/.
"""

import ml_collections

from unihetero_jax.config import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.llava15("clip", stage=1)
