"""UniHetero at full size: DINOv2 semantics are read and predicted by a 7B decoder, KL-16 pixels are drawn behind it.

    unihetero train --config=configs/unihetero_7b.py --workdir=runs/unihetero_7b

with --config.init.path=Llama-2-7b-hf --config.init.tokenizer=true --config.init.understanding_tower=dinov2-large and
--config.init.pixel_tower=kl16.ckpt for the weights. The paper's three arms: pixels are drawn from hidden states that do
not learn from it (as it stands), --config.losses.pixel.gradient_to_decoder=1 lets the diffusion loss into the
decoder, --config.losses.pixel.weight=0 draws none. Not run yet: it needs accelerators, published weights and 240M
samples; its plans are in configs/plans/. Its small twin is configs/unihetero_small.py.
"""

import ml_collections

from unihetero_jax.config import presets


def get_config() -> ml_collections.ConfigDict:
    return presets.unihetero("7b")
