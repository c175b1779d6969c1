"""What several studies have in common: paper B's pairings as runs of a size, and the scores that are shown."""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import presets
from unihetero_jax.config.presets import SmallTower, Tower
from unihetero_jax.study.declaration import Metric, Scale

PAIRINGS: dict[str, tuple[Tower, Tower]] = {
    "siglip_siglip": ("siglip", "siglip"),
    "siglip_vq": ("siglip", "vq16"),
    "vq_siglip": ("vq16", "siglip"),
    "vq_vq": ("vq16", "vq16"),
}
TOWERS: tuple[SmallTower, ...] = ("vq16", "siglip", "attribute_classifier")

# Of mixed training's steps; paper B's are 458 / 305 / 152 for mixed / understanding / generation: 3 : 2 : 1.
PARTS = {
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
    Metric("losses.generation.codes", "loss of codes", higher_is_better=False),
    Metric("losses.generation.semantic", "semantic loss", higher_is_better=False),
    Metric("generation.read.drawn.total", "read off drawings"),
)

# Steps between two looks at the angle between the objectives' gradients, which costs two to four steps.
_COSINES_EVERY = 50

# Slots of the longest sample with pictures of 64 tokens, and with pictures of 16: a row holds one sample, so that every
# step of a run sees as many.
_LONG, _SHORT = 108, 60


def trained(name: str, tasks: str, scale: Scale) -> ml_collections.ConfigDict:
    """A pairing that learns some of the tasks, for the steps of ``PARTS``."""
    config = pairing(name, scale)
    config.data.mode = tasks.removesuffix("_longer")
    config.train.steps = round(config.train.steps * PARTS[tasks])
    if tasks == "mixed" and not config.model.lora.rank:
        config.train.gradient_cosines_every = _COSINES_EVERY
    return config


def pairing(name: str, scale: Scale) -> ml_collections.ConfigDict:
    """A pairing of towers that learns both tasks for as long as the studies' longest runs of a scale.

    At ``tiny`` a step is 8 samples, one a row, whatever the pairing and the tasks: runs of as many steps have seen as
    many samples. The batch is small because it is steps that reading pictures waits for: 6,400 samples gave no more
    than chance in 200 steps of 32, and much more in 800 steps of 8.
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
    config.data.slots = _SHORT if name == "siglip_siglip" else _LONG
    config.train.batch_size = 8
    config.train.steps = 1_500 if scale == "tiny" else 10_000
    config.checkpoint.every_steps = 500
    config.checkpoint.keep_latest = 1
    config.evaluate.questions = 200
    config.evaluate.images = 64
    config.evaluate.batch_size = 100
    if scale == "small":
        # What is drawn after the steps of a tiny run is nothing to be read.
        config.evaluators.generation.attribute_classifier = "attribute_classifier"
    return config
