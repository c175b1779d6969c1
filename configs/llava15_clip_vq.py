"""Paper B's LLaVA-1.5, second stage: CLIP reads, VQ-16 draws, with Vicuna-7B; all but the towers is trained.

    unihetero train --config=configs/llava15_clip_vq.py --workdir=runs/llava15_clip_vq

with --config.init.path=runs/llava15_clip_vq_stage1, the workdir of configs/llava15_clip_vq_stage1.py; 200k requests
for pictures and LLaVA's 665k instructions. Not run yet: it needs accelerators and published weights; its plan for one
node of eight H100 is in configs/plans/.
"""

import ml_collections

from unihetero_jax.config import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.llava15("vq16", stage=2)
