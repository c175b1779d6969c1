"""Which towers a config's model has, their tokens and widths, and which of them only their features stand for."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from unihetero_jax.config.components import TOWERS, TowerConfig
from unihetero_jax.config.sections import (
    AdapterConfig,
    Config,
    generating_loss,
    raw_patches,
    target_adapter,
    target_section,
    target_tower,
)
from unihetero_jax.config.tree import Table
from unihetero_jax.errors import UsageError


def with_what_is_used(config: Config) -> Config:
    """Drop losses without weight, and add or drop the sections that depend on others."""
    losses = Table({name: section for name, section in config.losses.items() if section.weight})
    config = dataclasses.replace(config, losses=losses)
    model = config.model
    changes: dict[str, Any] = {"pixel_tower": None, "generation_adapter": None}
    if _has_pixel_tower(config):
        changes["pixel_tower"] = model.pixel_tower or raw_patches()
    if target_adapter(model) == "generation_adapter":
        changes["generation_adapter"] = model.generation_adapter or AdapterConfig()
    for name in ("understanding_distortion", "generation_distortion"):
        if (distortion := getattr(model, name)) is not None and not distortion.strength:
            changes[name] = None
    return dataclasses.replace(config, model=dataclasses.replace(model, **changes))


def _has_pixel_tower(config: Config) -> bool:
    return generating_loss(config, "latents") is not None and config.model.generation != "latents"


def towers_in_use(config: Config) -> dict[str, TowerConfig]:
    """Return the sections of the towers that the model has, by name."""
    model = config.model
    towers = {"understanding_tower": model.understanding_tower}
    if model.generation_tower is not None:
        towers["generation_tower"] = model.generation_tower
    if _has_pixel_tower(config):
        towers["pixel_tower"] = pixel_tower(config)
    return towers


def pixel_tower(config: Config) -> TowerConfig:
    """Return the section of the tower that gives the latents that a loss predicts.

    Raises:
      UsageError: raw patches are asked for, and the image cannot be cut into as many as there are target tokens.
    """
    model, size = config.model, config.data.image_size
    section = target_section(model) if model.generation == "latents" else model.pixel_tower
    if section is None:
        section = raw_patches()
    if getattr(section, "patch_size", 1):
        return section
    tokens = visual_tokens(config)[1]
    across = math.isqrt(tokens)
    if across**2 != tokens or size % across:
        raise UsageError(
            f"config.model.pixel_tower: an image of config.data.image_size={size} is not {tokens} square patches, "
            f"one for each token of config.model.{target_tower(model)}; set losses.pixel.weight=0 or "
            "pixel_tower.kind='kl16'"
        )
    changed: Any = section
    made: TowerConfig = dataclasses.replace(changed, patch_size=size // across)
    return made


def cached_towers(config: Config) -> dict[str, TowerConfig]:
    """Return those of ``towers_in_use`` whose features come with the batch."""
    return {name: section for name, section in towers_in_use(config).items() if section.cached}


def reads_pixels(config: Config) -> bool:
    """Return whether a training step encodes images: not where all towers' features are cached."""
    return cached_towers(config).keys() != towers_in_use(config).keys()


def visual_tokens(config: Config) -> tuple[int, int]:
    """Return the visual tokens of an input image, and of a target image."""
    model, size = config.model, config.data.image_size
    read = model.understanding_tower.tokens(size, "config.model.understanding_tower")
    return read, target_section(model).tokens(size, f"config.model.{target_tower(model)}")


def uncached(config: Config) -> Config:
    """Return the config with all its towers, in place of features that were computed before."""
    sections: dict[str, Any] = {
        name: dataclasses.replace(getattr(config.model, name), cached=False) for name in cached_towers(config)
    }
    model, data = dataclasses.replace(config.model, **sections), dataclasses.replace(config.data, features="")
    return dataclasses.replace(config, model=model, data=data)


def visual_places(config: Config) -> int:
    """Return the target tokens of a global batch with all its image places filled."""
    return config.train.batch_size * config.data.images_per_row * visual_tokens(config)[1]


def target_width(config: Config) -> int:
    """Return the feature width of the tower of target images."""
    return target_section(config.model).features


def code_count(config: Config) -> int:
    """Return the codebook entries of the tower of target images; 0 where it has none."""
    return target_section(config.model).codebook_size


def latent_width(config: Config) -> int:
    """Return the channels of a pixel latent; 0 where no loss predicts them."""
    return 0 if generating_loss(config, "latents") is None else pixel_tower(config).features


def check_pixel_tower(config: Config) -> None:
    """Refuse a pixel tower that does not give one latent for each target token.

    Raises:
      UsageError: naming the key and what would be right.
    """
    section, name = pixel_tower(config), "config.model.pixel_tower"
    if not section.gives_latents:
        fitting = [kind for kind in TOWERS.kinds() if TOWERS.config(kind).gives_latents]
        raise UsageError(f"{name}.kind={section.kind!r}: expected {' or '.join(map(repr, fitting))}")
    if section.training == "trained":
        raise UsageError(f"{name}.training='trained': expected 'frozen' or 'auto'; it only gives targets")
    found, tokens = section.tokens(config.data.image_size, name), visual_tokens(config)[1]
    if found != tokens:
        raise UsageError(
            f"{name} gives {found} latents per image and config.model.{target_tower(config.model)} {tokens} tokens: "
            "expected as many, since each target slot has one latent"
        )
