"""The diffusion head: a network, its objective and its sampler, put together from a config.

B rows, M tokens per row, C channels of a latent, D width of the condition.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from unihetero_jax.model.diffusion.config import DiffusionConfig
from unihetero_jax.model.diffusion.networks import DiffusionMLP, DiT, Network, Sizes
from unihetero_jax.model.diffusion.objectives import DDPM, FlowMatching, Objective
from unihetero_jax.model.diffusion.samplers import Settings, guidance_scale, sample
from unihetero_jax.model.diffusion.schedules import CosineSchedule, FlowSchedule


def make_objective(config: DiffusionConfig) -> Objective:
    """Build the objective of a config, with its schedule."""
    shared = (config.draws, config.condition_dropout)
    if config.objective == "flow":
        return FlowMatching(*shared, config.flow_times, schedule=FlowSchedule(config.timesteps))
    return DDPM(*shared, schedule=CosineSchedule(config.timesteps))


def make_network(config: DiffusionConfig, condition: int, tokens: int, channels: int, *, rngs: nnx.Rngs) -> Network:
    """Build the network of a config.

    Args:
      config: its kind and sizes.
      condition: D.
      tokens: of an image.
      channels: C, of a latent.
      rngs: for initialization.
    """
    sizes = Sizes(channels, make_objective(config).outputs(channels), condition, config.depth, config.width)
    null, dtype = config.condition_dropout > 0, jnp.dtype(config.dtype)
    if config.network == "dit":
        return DiT(
            sizes,
            config.heads,
            tokens,
            mlp_ratio=config.mlp_ratio,
            null_condition=null,
            dtype=dtype,
            rngs=rngs,
        )
    return DiffusionMLP(sizes, null_condition=null, dtype=dtype, rngs=rngs)


class _OnMesh:
    """A network whose activations stay with the rows of the mesh; objectives need not know about it."""

    def __init__(self, network: Network, mesh: Mesh):
        self._network, self._mesh = network, mesh
        self.group, self.dropped = network.group, network.dropped

    def __call__(self, noised: jax.Array, timestep: jax.Array, condition: jax.Array) -> jax.Array:
        network: Any = self._network
        predicted: jax.Array = network(noised, timestep, condition, self._mesh)
        return predicted


class DiffusionHead(nnx.Module):
    """Latents given hidden states.

    ``network`` is the module that predicts; see ``networks`` for how it is called.

    Args:
      config: everything about the head.
      condition: D, width of the hidden states.
      tokens: of an image.
      channels: C.
      rngs: for initialization.
    """

    def __init__(self, config: DiffusionConfig, condition: int, tokens: int, channels: int, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = tokens
        self.network = make_network(config, condition, tokens, channels, rngs=rngs)

    @property
    def objective(self) -> Objective:
        """What the network is trained for."""
        return make_objective(self.config)

    def losses(
        self,
        target: Float[Array, "B M C"],
        condition: Float[Array, "B M D"],
        key: jax.Array,
        mesh: Mesh | None = None,
    ) -> Float[Array, "B M"]:
        """Return the loss of each token; see ``Objective.losses``. The rows are split over ``mesh``."""
        network: Any = self.network if mesh is None else _OnMesh(self.network, mesh)
        return self.objective.losses(network, target, condition, key)

    def sample(
        self,
        condition: Float[Array, "B M D"],
        key: jax.Array,
        *,
        first: int | jax.Array = 0,
        unconditional: Float[Array, "B M D"] | None = None,
        guidance: float | jax.Array | None = None,
    ) -> Float[Array, "B M C"]:
        """Sample the latents of each token, as configured.

        Args:
          condition: hidden states, whole images one after another for the DiT.
          key: one key, or one per row; see ``samplers.sample``.
          first: place in its image of the first token, when an image is generated in parts, [] or [B, 1]; guidance that
            grows along the image needs it.
          unconditional: see ``samplers.sample``.
          guidance: in place of the configured one.
        """
        config = self.config
        wanted = config.guidance if guidance is None else guidance
        scale = wanted
        unguided = isinstance(wanted, int | float) and wanted == 1
        if not unguided and config.guidance_schedule != "constant":
            place = (first + jnp.arange(condition.shape[1])) % self.tokens
            scale = guidance_scale(wanted, config.guidance_schedule, place / self.tokens)
        settings = Settings(config.sampler, scale, config.temperature, config.clip)
        return sample(self.network, self.objective.schedule, condition, key, config.steps, settings, unconditional)
