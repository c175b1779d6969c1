"""UniHetero at full size: DINOv2 semantics are read and predicted by a 7B decoder, KL-16 pixels are drawn behind it.

    unihetero train --config=configs/unihetero.py --workdir=runs/unihetero

with --config.init.path=Llama-2-7b-hf --config.init.tokenizer=true --config.init.understanding_tower=dinov2-large and
--config.init.pixel_tower=kl16.ckpt for the weights. Not run yet: it needs accelerators, published weights and 240M
samples. Its small twin is configs/unihetero_small.py.
"""

import ml_collections

from unihetero_jax import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.unihetero()
