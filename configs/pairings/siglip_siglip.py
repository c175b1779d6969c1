"""Paper B at full size: SigLIP reads, SigLIP draws, with Vicuna-7B; 458 steps of LoRA, an epoch of Smart Watch.

    unihetero train --config=configs/pairings/siglip_siglip.py --workdir=runs/siglip_siglip

with --config.init.path=vicuna-7b-v1.5 --config.init.tokenizer=true for the decoder, and
--config.init.understanding_tower and --config.init.generation_tower for the towers. Not run yet: it needs
accelerators and published weights. Its small twin is configs/pairings/siglip_siglip_small.py.
"""

import ml_collections

from unihetero_jax.config import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.pairing("siglip", "siglip")
