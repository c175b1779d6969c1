"""UniHetero with a decoder of TinyLlama-1.1B's shape, for 64 v5e or eight H100: the same towers, data and losses as 7B.

    unihetero train --config=configs/unihetero_1b.py --workdir=runs/unihetero_1b

with --config.init.path=TinyLlama_v1.1 --config.init.tokenizer=true --config.init.understanding_tower=dinov2-large and
--config.init.pixel_tower=kl16.ckpt for the weights. Not run yet: it needs accelerators, published weights and 240M
samples; its plans are in configs/plans/. Its small twin is configs/unihetero_small.py.
"""

import ml_collections

from unihetero_jax.config import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.unihetero("1b")
