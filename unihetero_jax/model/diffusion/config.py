"""The settings of a diffusion head; plain data, so that the tree of config sections can hold it without jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unihetero_jax.config.constraints import FractionBelowOne, NonNegativeFloat, PositiveInt
from unihetero_jax.errors import UsageError


@dataclass(frozen=True)
class DiffusionConfig:
    """A head that samples continuous latents given the decoder's hidden states.

    Attributes:
      network: ``mlp`` denoises each token alone (MAR); ``dit`` denoises all tokens of an image together.
      depth: blocks of the network.
      width: width of the blocks.
      heads: attention heads of a ``dit``.
      mlp_ratio: hidden width of a ``dit``'s MLPs, as a multiple of ``width``.
      objective: ``ddpm`` (cosine schedule, predicts noise, learns the variance) or ``flow`` (rectified flow).
      timesteps: timesteps of ``ddpm``; ``flow`` gives its times to the network on the same scale.
      flow_times: distribution of the training times of ``flow``.
      draws: noise samples per token and step, for one pass of the decoder.
      condition_dropout: share of the tokens (``dit``: images) that are denoised from a learned null condition;
        guidance needs it.
      sampler: ``ancestral`` and ``ddim`` sample ``ddpm``, ``euler`` and ``heun`` sample ``flow``; ``auto``: the first
        of each.
      steps: sampling steps.
      guidance: scale of classifier-free guidance; 1: none.
      guidance_schedule: ``linear`` raises the scale from 1 at an image's first token to ``guidance`` at its last
        (MAR).
      temperature: factor on the noise while sampling.
      clip: bound of the predicted latents while sampling; 0: none.
      dtype: type of matrix products and activations; parameters, norms and losses are float32 either way.
    """

    network: Literal["mlp", "dit"] = "mlp"
    depth: PositiveInt = 3
    width: PositiveInt = 1024
    heads: PositiveInt = 16
    mlp_ratio: PositiveInt = 4
    objective: Literal["ddpm", "flow"] = "ddpm"
    timesteps: int = 1000
    flow_times: Literal["uniform", "logit_normal"] = "uniform"
    draws: PositiveInt = 4
    condition_dropout: FractionBelowOne = 0.1
    sampler: Literal["auto", "ancestral", "ddim", "euler", "heun"] = "auto"
    steps: PositiveInt = 100
    guidance: NonNegativeFloat = 1.0
    guidance_schedule: Literal["constant", "linear"] = "constant"
    temperature: NonNegativeFloat = 1.0
    clip: NonNegativeFloat = 0.0
    dtype: Literal["bfloat16", "float32"] = "float32"

    def check(self, key: str) -> None:
        """Refuse settings that cannot work together."""
        if self.network == "dit" and self.width % self.heads:
            raise UsageError(f"{key}.width={self.width} is not a multiple of {key}.heads={self.heads}")
        if self.timesteps < 2:
            raise UsageError(f"{key}.timesteps={self.timesteps}: expected 2 or more")
        if self.objective == "ddpm" and not 2 <= self.steps <= self.timesteps:
            raise UsageError(f"{key}.steps={self.steps}: expected 2 to {key}.timesteps={self.timesteps}")
        if self.guidance != 1 and not self.condition_dropout:
            raise UsageError(
                f"{key}.guidance={self.guidance} needs {key}.condition_dropout above 0: without it there is no null "
                "condition to guide away from"
            )
        try:
            sampler_of(self.objective, self.sampler)
        except UsageError as error:
            raise UsageError(f"{key}.{error}") from None


SAMPLERS = {"ddpm": ("ancestral", "ddim"), "flow": ("euler", "heun")}


def sampler_of(objective: str, sampler: str) -> str:
    """Return the sampler's name, ``auto`` resolved.

    Raises:
      UsageError: a sampler of another objective.
    """
    valid = SAMPLERS[objective]
    if sampler == "auto":
        return valid[0]
    if sampler not in valid:
        raise UsageError(f"sampler={sampler!r} does not sample objective={objective!r}; expected one of {valid}")
    return sampler
