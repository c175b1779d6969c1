"""Small heads whose every parameter is random, and networks that are right by construction."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unihetero_jax.model.diffusion.config import DiffusionConfig
from unihetero_jax.model.diffusion.head import DiffusionHead
from unihetero_jax.model.diffusion.schedules import CosineSchedule

CONDITION = 6
TOKENS = 4


@functools.cache
def toy_head(**changes) -> DiffusionHead:
    """A head for images of four tokens. As heads start, their outputs are zero, which would hide everything."""
    channels = changes.pop("channels", 3)
    sizes = {"depth": 2, "width": 16, "heads": 4, "draws": 1, "timesteps": 50, "steps": 5}
    config = DiffusionConfig(**{**sizes, **changes})

    head = nnx.eval_shape(lambda: DiffusionHead(config, CONDITION, TOKENS, channels, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(head)
    chance = np.random.default_rng(0)

    def fill(path, shape):
        values = (path[-2].key == "scale") + 0.3 * chance.standard_normal(shape.shape)
        return jnp.asarray(values, shape.dtype)

    return nnx.merge(graph, jax.tree.map_with_path(fill, state))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


class Oracle:
    """Predicts the expectation for data from N(condition, spread²), whatever the objective: the best there is."""

    group = 1

    def __init__(self, schedule, spread: float, variance: float = 0.0, channels: int = 2):
        self.schedule, self.spread, self.variance, self.channels = schedule, spread, variance, channels

    def unconditional(self, condition):
        return jnp.zeros_like(condition)

    def __call__(self, noised, timestep, condition):
        if isinstance(self.schedule, CosineSchedule):
            alpha_bar = jnp.asarray(self.schedule.alpha_bar, jnp.float32)[timestep][..., None]
            data, noise = jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)
        else:
            noise = (timestep / self.schedule.timesteps)[..., None]
            data = 1 - noise
        off = (noised - data * condition) / (data**2 * self.spread**2 + noise**2)
        epsilon, start = noise * off, condition + data * self.spread**2 * off
        if isinstance(self.schedule, CosineSchedule):
            return jnp.concatenate([epsilon, self.variance + condition], axis=-1)
        return epsilon - start
