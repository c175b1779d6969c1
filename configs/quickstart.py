"""The main job at laptop size: mixed training (paper B) with semantic autoregression on Smart Watch.

    unihetero train --config=configs/quickstart.py --workdir=runs/quickstart

Some 10 minutes on two quiet cores, data to pictures (11 to 14 on a slow day). Measured after 1,200 steps, seed 0 (on
2026-11-27), 500 held-out questions of each kind: weather 1.000, position 1.000, battery 0.975, time 0.998. Of 200 drawn
watches all have the right icons in the right corners, 98% the color that was asked for (shade off by 4.7 of 255), 96%
the hour, 74% the minute to within 3, 76% the battery to within 10%.
"""

import ml_collections

from unihetero_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    config.data.smart_watch.num_images = 12_000
    config.data.smart_watch.test_images = 500
    # A request gives the shade of its disc, so that one picture answers it, and not the mean of many.
    config.data.smart_watch.questions = "exact"
    # Two or three conversations fill 97% of a row of 224 slots, and 84% of one of 160.
    config.data.seq_len = 224
    config.data.images_per_row = 5
    # The answers are learned first; what is drawn needs more.
    config.data.task_weights.vqa = 1.5
    config.data.task_weights.caption = 0.3
    config.data.task_weights.generation = 2.6
    config.model.decoder.width = 128
    config.model.decoder.heads = 4
    config.model.decoder.kv_heads = 4
    config.model.decoder.mlp_width = 384
    config.model.decoder.dtype = "float32"
    config.model.decoder.tie_embeddings = False
    config.model.decoder.logit_scale = 1.0
    # The canvas is white: white becomes zero, and a patch is what is drawn on it.
    config.model.understanding_tower.pixel_mean = 1.0
    config.model.understanding_tower.width = 128
    # Without it, what is drawn first decides the rest: a shade or a hand that is a little wrong becomes more so.
    config.model.target_noise = 0.4
    config.losses.semantic.weight = 1.0
    # Icons and hands are a few pixels, which the semantic loss hardly sees: the decoder learns from pixels as well.
    config.losses.pixel.width = 384
    config.losses.pixel.weight = 5.0
    config.losses.pixel.gradient_to_decoder = 1.0
    config.optimizer.kind = "muon"
    config.optimizer.learning_rate = 4e-3
    config.train.batch_size = 24
    config.train.steps = 1200
    return config
