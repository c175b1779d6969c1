"""Which towers a config's model has, their tokens, and which of them only their features stand for."""

from __future__ import annotations

import dataclasses

from unihetero_jax.config.sections import Config, pixel_tower, target_tower
from unihetero_jax.towers.sections import TowerConfig, tower_tokens


def towers_in_use(config: Config) -> dict[str, TowerConfig]:
    """The sections of the towers that the model has, by name."""
    model = config.model
    towers = {"understanding_tower": model.understanding_tower}
    if not model.same_tower:
        towers["generation_tower"] = model.generation_tower
    if config.objectives.pixel.weight and model.generation != "latents":
        towers["pixel_tower"] = pixel_tower(config)
    return towers


def cached_towers(config: Config) -> dict[str, TowerConfig]:
    """Those of ``towers_in_use`` whose features come with the batch."""
    return {name: section for name, section in towers_in_use(config).items() if section.cached}


def reads_pixels(config: Config) -> bool:
    """Whether a step of training looks at images: not where features stand for every tower."""
    return cached_towers(config).keys() != towers_in_use(config).keys()


def visual_tokens(config: Config) -> tuple[int, int]:
    """Visual tokens of an image that is shown, and of one that is drawn."""
    model, size = config.model, config.data.image_size
    shown, drawn = (
        tower_tokens(getattr(model, name), size, f"config.model.{name}")
        for name in ("understanding_tower", target_tower(model))
    )
    return shown, drawn


def uncached(config: Config) -> Config:
    """The config with all its towers, in place of features that were computed before."""
    sections = {name: dataclasses.replace(getattr(config.model, name), cached=False) for name in cached_towers(config)}
    model, data = dataclasses.replace(config.model, **sections), dataclasses.replace(config.data, features="")
    return dataclasses.replace(config, model=model, data=data)
