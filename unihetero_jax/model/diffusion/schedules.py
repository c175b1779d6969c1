"""How much noise there is at each step: the cosine schedule, subsets of its steps for sampling, and straight lines.

Tables are NumPy float64 constants; arrays that are looked up in them are float32. S steps, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unihetero_jax.errors import UsageError


def space_timesteps(timesteps: int, sections: int | Sequence[int]) -> tuple[int, ...]:
    """Return the steps that are used for sampling, ascending; the first and last of each section are among them.

    The timesteps are cut into as many sections as there are counts, as equal as can be, and each gives its count,
    evenly strided and rounded (improved DDPM, arXiv 2102.09672, section 4; ``space_timesteps`` of its code).

    Args:
      timesteps: of the whole schedule.
      sections: number of steps to use, or the number of each section.

    Raises:
      UsageError: a section has fewer steps than are asked of it.
    """
    counts = [sections] if isinstance(sections, int) else list(sections)
    size, extra = divmod(timesteps, len(counts))
    used: list[int] = []
    start = 0
    for number, count in enumerate(counts):
        length = size + (number < extra)
        if not 1 <= count <= length:
            raise UsageError(f"diffusion steps: expected 1 to {length} of {length} timesteps, got {count}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Added up rather than multiplied: the rounding of the sums decides the halves, and published maps have it.
        place = 0.0
        for _ in range(count):
            used.append(start + round(place))
            place += stride
        start += length
    return tuple(used)


def lookup(table: np.ndarray, index: jax.Array) -> jax.Array:
    """Return the float32 entries of a table at ``index``, with an axis for the channels."""
    return jnp.asarray(table, jnp.float32)[index][..., None]


@dataclass(frozen=True)
class CosineSchedule:
    """ᾱ(t) = cos²((t + 0.008) / 1.008 · π/2), β ≤ 0.999 (improved DDPM, arXiv 2102.09672, equation 17).

    With x₀ the data and ε the noise, x_t = √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε. A respaced schedule has the same ᾱ at the
    steps it uses, and its own β between them. An index counts the used steps; the network is given ``network_times``.

    Args:
      timesteps: of the whole schedule.
      used: the steps in use, ascending; empty: all of them.
    """

    timesteps: int = 1000
    used: tuple[int, ...] = ()

    def respaced(self, steps: int | Sequence[int]) -> CosineSchedule:
        """Return this schedule with a subset of the steps; see ``space_timesteps``."""
        return CosineSchedule(self.timesteps, space_timesteps(self.timesteps, steps))

    @cached_property
    def network_times(self) -> np.ndarray:
        """Timestep of the whole schedule that each used step is, int32 [S]."""
        return np.asarray(self.used or range(self.timesteps), np.int32)

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """ᾱ of each used step, [S]."""

        def level(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

        count = self.timesteps
        betas = [min(1 - level((step + 1) / count) / level(step / count), 0.999) for step in range(count)]
        return np.cumprod(1.0 - np.asarray(betas))[self.network_times]

    @cached_property
    def previous_alpha_bar(self) -> np.ndarray:
        """ᾱ one used step closer to the data, [S]; 1 at the first."""
        return np.append(1.0, self.alpha_bar[:-1])

    @cached_property
    def beta(self) -> np.ndarray:
        """Variance added from the used step before, [S]."""
        return 1.0 - self.alpha_bar / self.previous_alpha_bar

    @cached_property
    def posterior_log_variance(self) -> np.ndarray:
        """Log of the variance of x_{t−1} given x_t and x₀, [S]; that of step 0, which is 0, is that of step 1."""
        variance = self.beta * (1.0 - self.previous_alpha_bar) / (1.0 - self.alpha_bar)
        return np.log(np.append(variance[1], variance[1:]))

    def noised(
        self, start: Float[Array, "*any C"], noise: Float[Array, "*any C"], index: Int[Array, "*any"]
    ) -> Float[Array, "*any C"]:
        """Return x_t from x₀ and ε."""
        return lookup(np.sqrt(self.alpha_bar), index) * start + lookup(np.sqrt(1.0 - self.alpha_bar), index) * noise

    def start(self, noised: jax.Array, epsilon: jax.Array, index: jax.Array) -> jax.Array:
        """Return x₀ from x_t and ε."""
        inverse = lookup(np.sqrt(1.0 / self.alpha_bar), index)
        return inverse * noised - lookup(np.sqrt(1.0 / self.alpha_bar - 1.0), index) * epsilon

    def posterior_mean(self, start: jax.Array, noised: jax.Array, index: jax.Array) -> jax.Array:
        """Return the mean of x_{t−1} given x₀ and x_t (DDPM, arXiv 2006.11239, equation 7)."""
        rest = 1.0 - self.alpha_bar
        of_start = self.beta * np.sqrt(self.previous_alpha_bar) / rest
        of_noised = (1.0 - self.previous_alpha_bar) * np.sqrt(1.0 - self.beta) / rest
        return lookup(of_start, index) * start + lookup(of_noised, index) * noised

    def log_variance(self, output: jax.Array, index: jax.Array) -> jax.Array:
        """Return the learned log variance: output −1 is the posterior's, 1 is log β (improved DDPM, equation 15)."""
        fraction = (output + 1.0) / 2.0
        least, most = lookup(self.posterior_log_variance, index), lookup(np.log(self.beta), index)
        return fraction * most + (1.0 - fraction) * least


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow: x_t = (1 − t) · x₀ + t · ε, so that t = 0 is data and t = 1 noise.

    The straight lines are of arXiv 2209.03003; which end is noise, and the names, of arXiv 2403.03206, equation 13.

    Args:
      timesteps: the network is given t · timesteps, the range that its timestep embedding is made for.
    """

    timesteps: int = 1000

    def noised(
        self, start: Float[Array, "*any C"], noise: Float[Array, "*any C"], time: Float[Array, "*any"]
    ) -> Float[Array, "*any C"]:
        """Return x_t from x₀ and ε."""
        return (1.0 - time)[..., None] * start + time[..., None] * noise

    def network_time(self, time: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """Return the timestep that the network is given at time t."""
        return time * self.timesteps


Schedule = CosineSchedule | FlowSchedule
