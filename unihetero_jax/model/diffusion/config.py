"""The settings of a diffusion head; plain data, so that the tree of config sections can hold it without jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class DiffusionConfig:
    """A head that draws continuous latents given the decoder's hidden states.

    ``network``: ``mlp`` denoises each token alone (MAR), ``dit`` all tokens of an image together. ``depth``, ``width``:
    its blocks; ``heads`` and ``mlp_ratio`` are the DiT's. ``objective``:
    ``ddpm`` (cosine schedule, noise predicted, variance learned) or ``flow`` (rectified flow). ``timesteps``: of the
    DDPM; flow times are told to the network on the same scale. ``flow_times``: how flow draws its times.
    ``draws``: noise draws a token and step, for one pass of the decoder. ``condition_dropout``: share of the tokens
    (``dit``: images) that are denoised from a learned null condition; guidance needs it. ``sampler``: ``auto`` is
    ``ancestral`` for DDPM and ``euler`` for flow. ``steps``: sampling steps. ``guidance``: 1 is none;
    ``guidance_schedule`` ``linear`` goes from 1 at an image's first token towards it at the last (MAR).
    ``temperature``: factor on the noise. ``clip``: bound of predicted latents while sampling; 0: none.
    ``dtype``: matrix products and activations; parameters, norms and losses are float32 either way.
    """

    network: Literal["mlp", "dit"] = "mlp"
    depth: int = 3
    width: int = 1024
    heads: int = 16
    mlp_ratio: int = 4
    objective: Literal["ddpm", "flow"] = "ddpm"
    timesteps: int = 1000
    flow_times: Literal["uniform", "logit_normal"] = "uniform"
    draws: int = 4
    condition_dropout: float = 0.1
    sampler: Literal["auto", "ancestral", "ddim", "euler", "heun"] = "auto"
    steps: int = 100
    guidance: float = 1.0
    guidance_schedule: Literal["constant", "linear"] = "constant"
    temperature: float = 1.0
    clip: float = 0.0
    dtype: Literal["bfloat16", "float32"] = "float32"


SAMPLERS = {"ddpm": ("ancestral", "ddim"), "flow": ("euler", "heun")}


def sampler_of(objective: str, sampler: str) -> str:
    """The sampler's name, ``auto`` resolved.

    Raises:
      UsageError: a sampler of another objective.
    """
    valid = SAMPLERS[objective]
    if sampler == "auto":
        return valid[0]
    if sampler not in valid:
        raise UsageError(f"sampler={sampler!r} does not sample objective={objective!r}; expected one of {valid}")
    return sampler


def validate(config: DiffusionConfig, key: str) -> None:
    """Refuses settings that cannot work; ``key`` is where the section is, such as ``config.objectives.diffusion``.

    Raises:
      UsageError: naming the key and what was expected.
    """
    for name in ("depth", "width", "heads", "mlp_ratio", "draws"):
        if getattr(config, name) < 1:
            raise UsageError(f"{key}.{name}={getattr(config, name)}: expected 1 or more")
    if config.network == "dit" and config.width % config.heads:
        raise UsageError(f"{key}.width={config.width} is not a multiple of {key}.heads={config.heads}")
    if config.timesteps < 2:
        raise UsageError(f"{key}.timesteps={config.timesteps}: expected 2 or more")
    if config.steps < 1:
        raise UsageError(f"{key}.steps={config.steps}: expected 1 or more")
    if config.objective == "ddpm" and not 2 <= config.steps <= config.timesteps:
        raise UsageError(f"{key}.steps={config.steps}: expected 2 to {key}.timesteps={config.timesteps}")
    if not 0 <= config.condition_dropout < 1:
        raise UsageError(f"{key}.condition_dropout={config.condition_dropout}: expected 0 or more, below 1")
    if config.guidance != 1 and not config.condition_dropout:
        raise UsageError(
            f"{key}.guidance={config.guidance} needs {key}.condition_dropout above 0: without it there is no null "
            "condition to guide away from"
        )
    for name in ("guidance", "temperature", "clip"):
        if getattr(config, name) < 0:
            raise UsageError(f"{key}.{name}={getattr(config, name)}: expected 0 or more")
    try:
        sampler_of(config.objective, config.sampler)
    except UsageError as error:
        raise UsageError(f"{key}.{error}") from None
