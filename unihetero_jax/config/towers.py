"""Which towers a config's model has, their tokens, and which of them only their features stand for."""

from __future__ import annotations

import dataclasses

from unihetero_jax.config.sections import Config, generating_loss, pixel_tower, target_tower
from unihetero_jax.errors import UsageError
from unihetero_jax.towers.sections import TowerConfig, check_tower, tower_tokens, tower_width, vq_config


def towers_in_use(config: Config) -> dict[str, TowerConfig]:
    """The sections of the towers that the model has, by name."""
    model = config.model
    towers = {"understanding_tower": model.understanding_tower}
    if not model.same_tower:
        towers["generation_tower"] = model.generation_tower
    if generating_loss(config, "latents") is not None and model.generation != "latents":
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


def visual_places(config: Config) -> int:
    """Target tokens of a global batch with all its image places filled."""
    return config.train.batch_size * config.data.images_per_row * visual_tokens(config)[1]


def target_width(config: Config) -> int:
    """Width of a feature of the tower of target images."""
    name = target_tower(config.model)
    return tower_width(getattr(config.model, name), f"config.model.{name}")


def code_count(config: Config) -> int:
    """Entries of the codebook of the tower of target images; 0 where it has none."""
    name = target_tower(config.model)
    section: TowerConfig = getattr(config.model, name)
    return vq_config(section, f"config.model.{name}").codes if section.kind == "vq16" else 0


def latent_width(config: Config) -> int:
    """Channels of a pixel latent; 0 where no loss predicts them."""
    if generating_loss(config, "latents") is None:
        return 0
    return tower_width(pixel_tower(config), "config.model.pixel_tower")


def check_pixel_tower(config: Config) -> None:
    """Refuse a pixel tower that does not give one latent for each target token.

    Raises:
      UsageError: naming the key and what would be right.
    """
    model, side = config.model, target_tower(config.model)
    tokens, key = visual_tokens(config)[1], f"config.model.{side}"
    name = "config.model.pixel_tower"
    if model.pixel_tower.kind not in ("pixels", "kl16"):
        raise UsageError(f"{name}.kind={model.pixel_tower.kind!r}: expected 'pixels' or 'kl16'")
    if model.pixel_tower.distortion.strength:
        raise UsageError(
            f"{name}.distortion.strength={model.pixel_tower.distortion.strength}: expected 0; what is distorted are "
            "the features of config.model.understanding_tower or generation_tower"
        )
    if model.pixel_tower.training == "trained":
        raise UsageError(f"{name}.training='trained': expected 'frozen' or 'auto'; it only gives targets")
    found = tower_tokens(pixel_tower(config), config.data.image_size, name)
    check_tower(pixel_tower(config), config.data.image_size, name)
    if found != tokens:
        raise UsageError(
            f"{name} gives {found} latents an image and {key} {tokens} tokens: expected as many, since each drawn slot "
            "has one latent"
        )
