"""Checks of a whole config: values that are impossible or contradict each other, each with the key to change."""

from __future__ import annotations

from unihetero_jax.config.sections import Config, frozen_groups, mode_weights, target_section, target_tower
from unihetero_jax.config.towers import cached_towers, visual_tokens
from unihetero_jax.config.tree import check
from unihetero_jax.errors import UsageError


def validate(config: Config) -> None:
    """Refuse impossible values before anything is built, each with the key to change."""
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
    model = config.model
    if not any(section.reaches_decoder for section in config.losses.values()):
        raise UsageError(
            "config.losses: no loss with a weight above 0 reaches the decoder (a pixel loss does with a "
            "gradient_to_decoder above 0)"
        )
    visual_tokens(config)
    if not model.same_tower and config.data.input_role == "both":
        raise UsageError(
            "config.data.input_role='both' with a config.model.generation_tower: an image that is input and target "
            "needs one tower for both; leave generation_tower out or set input_role='input'"
        )
    if config.data.input_role == "both":
        _validate_both(config)
    tower, key = target_section(model), f"config.model.{target_tower(model)}"
    fits = {"codes": tower.codebook_size > 0, "latents": tower.gives_latents}.get(model.generation, True)
    if not fits:
        what = "a codebook, such as 'vq16'" if model.generation == "codes" else "pixel latents: 'kl16' or 'pixels'"
        raise UsageError(
            f"{key}.kind={tower.kind!r} with config.model.generation={model.generation!r}: expected a tower with {what}"
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
    """Check ``input_role='both'``: every image is then encoded as a target, so input settings would do nothing."""
    model = config.model
    if not model.share_adapter:
        raise UsageError(
            "config.model.share_adapter=False with config.data.input_role='both': every image enters by the "
            "target adapter, and the other would learn nothing; set share_adapter=True or input_role='input'"
        )
    if model.understanding_distortion != model.generation_distortion:
        raise UsageError(
            "config.model.understanding_distortion differs from config.model.generation_distortion with "
            "config.data.input_role='both': one encoding of an image is input and target; set both alike, or "
            "input_role='input'"
        )
