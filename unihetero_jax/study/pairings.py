"""Paper B's pairings of towers as training configs, with the metrics and small towers of their studies."""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import presets
from unihetero_jax.config.presets import Tower
from unihetero_jax.study.definition import Metric, Scale

# Understanding and generation tower of each pairing.
PAIRINGS: dict[str, tuple[Tower, Tower]] = {
    "siglip_siglip": ("siglip", "siglip"),
    "siglip_vq": ("siglip", "vq16"),
    "vq_siglip": ("vq16", "siglip"),
    "vq_vq": ("vq16", "vq16"),
}
TOWERS = ("vq16", "siglip", "attribute_classifier")

# Steps as a share of mixed training's. Paper B's steps are 458 / 305 / 152 for mixed / understanding / generation,
# which is 3 : 2 : 1.
STEP_SHARES = {
    "understanding": 2 / 3,
    "understanding_longer": 1.0,
    "generation": 1 / 3,
    "generation_longer": 1.0,
    "mixed": 1.0,
}

METRICS = (
    Metric("vqa.total.score", "answers"),
    Metric("vqa.time.score", "time"),
    Metric("vqa.weather.score", "weather"),
    Metric("vqa.position.score", "position"),
    Metric("vqa.battery.score", "battery"),
    Metric("losses.generation.codes", "code loss", higher_is_better=False),
    Metric("losses.generation.semantic", "semantic loss", higher_is_better=False),
    Metric("generation.read.drawn.total", "attributes of generated images"),
)

# Steps between measurements of the angle between the objectives' gradients, each of which costs two to four steps.
_COSINES_EVERY = 50

# Slots of the longest sample with images of 64 tokens, and with images of 16. A row holds one sample, so that every
# step of a run sees the same number of samples.
_LONG, _SHORT = 108, 60


def train_config(name: str, tasks: str, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a pairing that is trained for some of the tasks.

    Args:
      name: the pairing.
      tasks: a key of ``STEP_SHARES``.
      scale: the scale.
    """
    config = pairing(name, scale)
    config.data.mode = tasks.removesuffix("_longer")
    config.train.steps = round(config.train.steps * STEP_SHARES[tasks])
    if tasks == "mixed" and not config.model.lora.rank:
        config.train.gradient_cosines_every = _COSINES_EVERY
    return config


def pairing(name: str, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a pairing that is trained for both tasks, with the most steps of a scale.

    At ``tiny`` a step is 8 samples, one per row, whatever the pairing and the tasks: runs of the same number of steps
    have seen the same number of samples. The batch is small because learning to read images takes steps: with 6,400
    samples, answers were hardly above chance after 200 steps of 32, and far above it after 800 steps of 8.
    """
    understanding, generation = PAIRINGS[name]
    if scale == "paper":
        config = presets.pairing(understanding, generation)
        config.data.smart_watch.num_images = 60_000
        config.data.smart_watch.test_images = 6_000
        config.data.smart_watch.questions = "paper"
        return config
    config = presets.pairing(understanding, generation, small=True)
    config.data.smart_watch.num_images = 6_000
    config.data.smart_watch.test_images = 400
    config.data.images_per_row = 1
    config.data.seq_len = _SHORT if name == "siglip_siglip" else _LONG
    config.train.batch_size = 8
    config.train.steps = 1_500 if scale == "tiny" else 10_000
    config.checkpoint.every_steps = 500
    config.checkpoint.keep_latest = 1
    config.evaluate.questions = 200
    config.evaluate.images = 64
    config.evaluate.batch_size = 100
    if scale == "small":
        # After the steps of a tiny run generated images have no readable attributes.
        config.evaluators.generation.attribute_classifier = "attribute_classifier"
    return config
