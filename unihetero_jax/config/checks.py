"""What a config may not say: impossible values, and values that contradict each other, each with the key to change."""

from __future__ import annotations

import dataclasses

from unihetero_jax.config.sections import TOWERS, Config, frozen_groups, mode_weights, target_tower
from unihetero_jax.config.towers import cached_towers
from unihetero_jax.config.tree import check
from unihetero_jax.errors import UsageError
from unihetero_jax.towers.sections import TowerConfig, check_tower


def validate(config: Config) -> None:
    """Refuses impossible values before anything is built, each with the key to change."""
    check(config, "config")
    if not any(mode_weights(config).values()):
        mode = config.data.mode
        raise UsageError(f"config.data.task_weights: no task with a weight above 0 in config.data.mode={mode!r}")
    _validate_visual(config)
    if config.train.gradient_cosines_every:
        _validate_gradient_cosines(config)


def _validate_gradient_cosines(config: Config) -> None:
    every = f"config.train.gradient_cosines_every={config.train.gradient_cosines_every}"
    if "decoder" in frozen_groups(config):
        raise UsageError(f"{every} with a decoder that is not trained (frozen, or beside LoRA): expected 0")
    if len(config.losses) < 2:
        raise UsageError(f"{every} with one loss: expected 0, or a second one with a weight above 0")


def _validate_visual(config: Config) -> None:
    """Check towers, adapters and losses against each other."""
    model, size = config.model, config.data.image_size
    if not any(section.reaches_decoder for section in config.losses.values()):
        raise UsageError(
            "config.losses: no loss with a weight above 0 reaches the decoder (a pixel loss does with a "
            "gradient_to_decoder above 0)"
        )
    for name in TOWERS[:2]:
        check_tower(getattr(model, name), size, f"config.model.{name}")
    if model.same_tower:
        own = dataclasses.replace(model.generation_tower, distortion=model.understanding_tower.distortion)
        if own != dataclasses.replace(TowerConfig(), distortion=own.distortion):
            raise UsageError(
                "config.model.generation_tower differs from its defaults with config.model.same_tower=True: the "
                "understanding tower serves both sides; set same_tower=False to have two"
            )
    elif config.data.input_role == "both":
        raise UsageError(
            "config.data.input_role='both' with config.model.same_tower=False: an image that is read and predicted "
            "needs one tower for both; set same_tower=True or input_role='input'"
        )
    if config.data.input_role == "both":
        _validate_both(config)
    key = f"config.model.{target_tower(model)}"
    tower: TowerConfig = getattr(model, target_tower(model))
    fitting = {"codes": ("vq16",), "latents": ("kl16", "pixels")}.get(model.generation)
    if fitting and tower.kind not in fitting:
        raise UsageError(
            f"{key}.kind={tower.kind!r} with config.model.generation={model.generation!r}: expected "
            f"{' or '.join(map(repr, fitting))}"
        )
    for name, section in config.losses.items():
        section.check_with(config, f"config.losses.{name}")
    cached = list(cached_towers(config))
    if cached and not config.data.features:
        raise UsageError(
            f"config.model.{cached[0]}.cached=True with config.data.features='': expected the folder that `unihetero "
            "towers features` made"
        )
    if config.data.features and not cached:
        raise UsageError(
            f"config.data.features={config.data.features!r} and no tower that is replaced by them: expected "
            "config.model.understanding_tower.cached=True (or that of another tower), or features=''"
        )


def _validate_both(config: Config) -> None:
    """Every image is then seen by the side of what is drawn: settings of the other one alone would do nothing."""
    model = config.model
    if not model.share_adapter:
        raise UsageError(
            "config.model.share_adapter=False with config.data.input_role='both': every image enters by the adapter "
            "of what is drawn, and the other would learn nothing; set share_adapter=True or input_role='input'"
        )
    ours, theirs = model.understanding_tower.distortion, model.generation_tower.distortion
    if ours != theirs and (ours.strength or theirs.strength):
        raise UsageError(
            "config.model.understanding_tower.distortion differs from config.model.generation_tower.distortion with "
            "config.data.input_role='both': one view of an image is read and predicted; set both alike, or "
            "input_role='input'"
        )
