"""What a network is trained for: DDPM with a learned variance, and flow matching; a loss for each token.

An objective defines the distribution of times, the noising and the loss of a token. Noise and dropped conditions are
sampled alike for all. B rows, M tokens per row, R draws, C channels, D width of the condition.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unihetero_jax.model.diffusion.networks import Network
from unihetero_jax.model.diffusion.schedules import CosineSchedule, FlowSchedule, Schedule, lookup


@dataclass(frozen=True)
class Objective(ABC):
    """The interface, and what all objectives have in common.

    Args:
      draws: R, times and noises sampled for each token; they cost passes of the network, none of the decoder.
      condition_dropout: probability that a group of tokens is denoised from the null condition.
      schedule: what samplers follow too.
    """

    draws: int = 1
    condition_dropout: float = 0.0
    schedule: Schedule = field(kw_only=True)

    @abstractmethod
    def outputs(self, channels: int) -> int:
        """Return the network's outputs for a latent of ``channels``."""

    @abstractmethod
    def times(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Sample times of ``shape``."""

    @abstractmethod
    def token_losses(
        self, network: Network, target: jax.Array, condition: jax.Array, time: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Return the loss of each token, [...], at given times [...] and noise [..., C]."""

    def losses(
        self, network: Network, target: Float[Array, "B M C"], condition: Float[Array, "B M D"], key: jax.Array
    ) -> Float[Array, "B M"]:
        """Return the loss of each token, float32, a mean over the draws. ``key`` is the only source of randomness.

        Args:
          network: what is trained.
          target: the data.
          condition: the decoder's hidden state for each token; gradients flow into it.
          key: for times, noises and dropped conditions.

        Raises:
          ValueError: M is not a multiple of the network's group.
          UsageError: conditions are to be dropped, and the network has no null condition.
        """
        rows, tokens, _ = target.shape
        if tokens % network.group:
            raise ValueError(f"{tokens} tokens per row are not whole images of {network.group}")
        # The draws lie beside each other in the row: rows stay where they are on the mesh, and images stay whole.
        target = jnp.tile(target.astype(jnp.float32), (1, self.draws, 1))
        condition = jnp.tile(condition, (1, self.draws, 1))
        groups = (rows, self.draws * tokens // network.group)
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        time = jnp.repeat(self.times(time_key, groups), network.group, axis=1)
        noise = jax.random.normal(noise_key, target.shape)
        if self.condition_dropout:
            dropped = jax.random.bernoulli(drop_key, self.condition_dropout, groups)
            condition = network.dropped(condition, jnp.repeat(dropped, network.group, axis=1))
        losses = self.token_losses(network, target, condition, time, noise)
        return jnp.mean(losses.reshape(rows, self.draws, tokens), axis=1)


class DDPMTerms(NamedTuple):
    """Both parts of the loss of each token: squared error of the noise, and the variational bound in bits."""

    mse: jax.Array
    vb: jax.Array


@dataclass(frozen=True)
class DDPM(Objective):
    """Noise prediction and a learned variance: ``mse + vb`` (improved DDPM, arXiv 2102.09672; as MAR trains).

    The bound's gradient reaches the variance only. It has no further factor: MAR's loss is ``mse + vb`` for 1,000
    timesteps, where the rescaled bound of improved DDPM, vb · T/1000, is the same.
    """

    schedule: CosineSchedule = field(default_factory=CosineSchedule, kw_only=True)

    def outputs(self, channels: int) -> int:
        """Return two per channel: noise and variance."""
        return 2 * channels

    def times(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Sample uniform steps of the schedule, int32."""
        return jax.random.randint(key, shape, 0, len(self.schedule.network_times))

    def terms(
        self, network: Network, target: jax.Array, condition: jax.Array, time: jax.Array, noise: jax.Array
    ) -> DDPMTerms:
        """Return both terms of each token, means over the channels."""
        schedule = self.schedule
        noised = schedule.noised(target, noise, time)
        epsilon, variance = jnp.split(network(noised, jnp.asarray(schedule.network_times)[time], condition), 2, axis=-1)
        mse = jnp.mean(jnp.square(noise - epsilon), axis=-1)
        true_mean = schedule.posterior_mean(target, noised, time)
        true_log_variance = lookup(schedule.posterior_log_variance, time)
        start = schedule.start(noised, jax.lax.stop_gradient(epsilon), time)
        mean, log_variance = schedule.posterior_mean(start, noised, time), schedule.log_variance(variance, time)
        divergence = gaussian_divergence(true_mean, true_log_variance, mean, log_variance)
        likelihood = discretized_log_likelihood(target, mean, 0.5 * log_variance)
        bound = jnp.where((time == 0)[..., None], -likelihood, divergence)
        return DDPMTerms(mse, jnp.mean(bound, axis=-1) / math.log(2.0))

    def token_losses(
        self, network: Network, target: jax.Array, condition: jax.Array, time: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Return ``mse + vb``."""
        terms = self.terms(network, target, condition, time, noise)
        return terms.mse + terms.vb


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Velocity prediction along straight lines: the target is dx/dt = noise − data (arXiv 2209.03003, 2210.02747).

    Args:
      times_from: ``uniform`` on [0, 1], or ``logit_normal``: the sigmoid of a standard normal, which spends more on the
        middle (arXiv 2403.03206, equation 19 with m = 0, s = 1).
    """

    times_from: Literal["uniform", "logit_normal"] = "uniform"
    schedule: FlowSchedule = field(default_factory=FlowSchedule, kw_only=True)

    def outputs(self, channels: int) -> int:
        """Return one per channel: the velocity."""
        return channels

    def times(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Sample times from 0 (data) to 1 (noise), float32."""
        if self.times_from == "logit_normal":
            return jax.nn.sigmoid(jax.random.normal(key, shape))
        return jax.random.uniform(key, shape)

    def token_losses(
        self, network: Network, target: jax.Array, condition: jax.Array, time: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Return the squared error of the velocity, a mean over the channels."""
        velocity = network(self.schedule.noised(target, noise, time), self.schedule.network_time(time), condition)
        return jnp.mean(jnp.square(noise - target - velocity), axis=-1)


def gaussian_divergence(mean: jax.Array, log_variance: jax.Array, to_mean: jax.Array, to: jax.Array) -> jax.Array:
    """Return the KL divergence in nats of each channel, from N(mean, exp log_variance) to N(to_mean, exp to)."""
    spread = jnp.exp(log_variance - to) + jnp.square(mean - to_mean) * jnp.exp(-to)
    return 0.5 * (to - log_variance - 1.0 + spread)


def discretized_log_likelihood(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Return the log probability of the 1/127.5-wide bin around ``x`` in [−1, 1] (DDPM, arXiv 2006.11239, eq. 13).

    MAR keeps the bins for latents too. The normal's distribution function is the tanh approximation of the reference.
    """

    def below(edge: jax.Array) -> jax.Array:
        y = edge * jnp.exp(-log_scale)
        return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y**3)))

    upper, lower = below(x - mean + 1.0 / 255.0), below(x - mean - 1.0 / 255.0)
    probability = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1.0 - lower, upper - lower))
    return jnp.log(jnp.maximum(probability, 1e-12))
