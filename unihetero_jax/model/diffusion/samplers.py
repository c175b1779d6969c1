"""From noise to latents: ancestral and DDIM steps for DDPM, Euler and Heun steps for flows, with guidance.

``sample`` draws noise from keys; ``trajectory`` takes it as arrays and returns every intermediate. All loops are
``jax.lax.scan``. B rows, M tokens, C channels, D width of the condition, S steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion.config import sampler_of
from unihetero_jax.model.diffusion.networks import Network
from unihetero_jax.model.diffusion.schedules import CosineSchedule, FlowSchedule, Schedule, lookup

Noise = Callable[[jax.Array], jax.Array]
Step = Callable[[jax.Array, jax.Array], jax.Array]


class Settings(NamedTuple):
    """How to sample.

    ``sampler``: ``auto``, ``ancestral`` or ``ddim`` (DDPM), ``euler`` or ``heun`` (flow). ``guidance``: a scale, or one
    for each row and token, broadcast to [B, M]; 1 is none, and costs no second pass where it is a Python number.
    ``temperature``: factor on the noise of ancestral steps (MAR), and on the starting noise of the samplers that have
    no other. ``clip``: bound of the predicted data (DDPM only; MAR has none); 0: none.
    """

    sampler: str = "auto"
    guidance: float | jax.Array = 1.0
    temperature: float = 1.0
    clip: float = 0.0


DEFAULT = Settings()


def guidance_scale(scale: float | jax.Array, schedule: str, progress: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Return the scale at a place in the image, ``progress`` from 0 (first token) to 1.

    ``constant``, or ``linear``: 1 + (scale − 1) · progress, as MAR (arXiv 2406.11838) guides later tokens more.

    Raises:
      ValueError: an unknown schedule.
    """
    if schedule == "constant":
        return jnp.full(jnp.shape(progress), scale, jnp.float32)
    if schedule == "linear":
        return 1.0 + (scale - 1.0) * jnp.asarray(progress, jnp.float32)
    raise ValueError(f"unknown guidance schedule {schedule!r}; expected 'constant' or 'linear'")


def sample(
    network: Network,
    schedule: Schedule,
    condition: Float[Array, "B M D"],
    key: jax.Array,
    steps: int,
    settings: Settings = DEFAULT,
    unconditional: Float[Array, "B M D"] | None = None,
) -> Float[Array, "B M C"]:
    """Sample the latents of each token.

    Args:
      network: what was trained.
      schedule: the one it was trained with (whole; it is respaced here).
      condition: the decoder's hidden state for each token.
      key: one key, or one a row, [B]: a row's latents are a function of its own key and condition, whatever rows it
        rides with. A single key is folded with the number of the row.
      steps: S.
      settings: sampler, guidance, temperature.
      unconditional: what guidance leads away from; the network's null condition when it is not given.

    Raises:
      UsageError: a sampler of another schedule, more steps than timesteps, guidance without a null condition.
    """
    rows, tokens = condition.shape[:2]
    keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))

    def noise(number: jax.Array) -> jax.Array:
        numbered = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return jax.vmap(lambda row: jax.random.normal(row, (tokens, network.channels)))(numbered)

    first, step = _begin(network, schedule, condition, noise, steps, settings, unconditional)
    return jax.lax.scan(lambda x, number: (step(x, number), None), first, jnp.arange(1, steps + 1))[0]


def trajectory(
    network: Network,
    schedule: Schedule,
    condition: Float[Array, "*any D"],
    noise: Float[Array, "S1 *any C"],
    settings: Settings = DEFAULT,
    unconditional: Float[Array, "*any D"] | None = None,
) -> Float[Array, "S1 *any C"]:
    """Return the starting noise and the latents after each of S = len(noise) − 1 steps, all noise given.

    ``noise[0]`` starts, ``noise[i]`` is of step i; samplers without noise of their own read the first only.

    Raises:
      UsageError: as in ``sample``.
    """
    noise, condition = jnp.asarray(noise), jnp.asarray(condition)
    steps = len(noise) - 1
    first, step = _begin(network, schedule, condition, lambda number: noise[number], steps, settings, unconditional)

    def keep(x: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = step(x, number)
        return x, x

    return jnp.concatenate([first[None], jax.lax.scan(keep, first, jnp.arange(1, steps + 1))[1]])


def _begin(
    network: Network,
    schedule: Schedule,
    condition: jax.Array,
    noise: Noise,
    steps: int,
    settings: Settings,
    unconditional: jax.Array | None,
) -> tuple[jax.Array, Step]:
    """Return the first latents, and the function of a step: (x, number of the step from 1) → the next x."""
    first = noise(jnp.int32(0))
    predict = _guided(network, condition, settings.guidance, unconditional)
    if isinstance(schedule, CosineSchedule):
        name = sampler_of("ddpm", settings.sampler)
        if not 2 <= steps <= schedule.timesteps:
            raise UsageError(f"diffusion steps={steps}: expected 2 to {schedule.timesteps}")
        respaced = schedule.respaced(steps)
        if name == "ddim":
            return settings.temperature * first, _ddim(predict, respaced, settings)
        return first, _ancestral(predict, respaced, noise, settings)
    name = sampler_of("flow", settings.sampler)
    if steps < 1:
        raise UsageError(f"diffusion steps={steps}: expected 1 or more")
    return settings.temperature * first, _flow(predict, schedule, steps, name == "heun")


def _guided(
    network: Network, condition: jax.Array, guidance: float | jax.Array, unconditional: jax.Array | None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return the network as a function of latents and one timestep, guided (arXiv 2207.12598, equation 6).

    The prediction becomes unconditional + guidance · (conditional − unconditional); a learned variance stays the
    conditional one, as MAR leaves it.
    """
    if isinstance(guidance, int | float) and guidance == 1:

        def plain(x: jax.Array, timestep: jax.Array) -> jax.Array:
            return network(x, jnp.broadcast_to(timestep, x.shape[:-1]), condition)

        return plain

    null = network.unconditional(condition) if unconditional is None else unconditional
    # Beside each other in the row, so that rows stay where they are on the mesh.
    both = jnp.concatenate([condition, null.astype(condition.dtype)], axis=-2)
    scale = jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), condition.shape[:-1])[..., None]

    def guided(x: jax.Array, timestep: jax.Array) -> jax.Array:
        twice = jnp.concatenate([x, x], axis=-2)
        output = network(twice, jnp.broadcast_to(timestep, twice.shape[:-1]), both)
        conditional, free = jnp.split(output, 2, axis=-2)
        channels = network.channels
        led = free[..., :channels] + scale * (conditional[..., :channels] - free[..., :channels])
        return jnp.concatenate([led, conditional[..., channels:]], axis=-1)

    return guided


def _index(schedule: CosineSchedule, number: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the index of the step that is the ``number``-th of sampling, for each token, and its timestep."""
    index = len(schedule.network_times) - number
    return jnp.broadcast_to(index, x.shape[:-1]), jnp.asarray(schedule.network_times)[index]


def _clipped(start: jax.Array, bound: float) -> jax.Array:
    return jnp.clip(start, -bound, bound) if bound else start


def _ancestral(predict: Step, schedule: CosineSchedule, noise: Noise, settings: Settings) -> Step:
    """Sample x_{t−1} ~ N(posterior mean given the predicted x₀, learned variance); no noise at the last step."""

    def step(x: jax.Array, number: jax.Array) -> jax.Array:
        index, time = _index(schedule, number, x)
        epsilon, variance = jnp.split(predict(x, time), 2, axis=-1)
        start = _clipped(schedule.start(x, epsilon, index), settings.clip)
        mean = schedule.posterior_mean(start, x, index)
        spread = jnp.exp(0.5 * schedule.log_variance(variance, index)) * noise(number) * settings.temperature
        return mean + jnp.where(index[..., None] > 0, spread, 0.0)

    return step


def _ddim(predict: Step, schedule: CosineSchedule, settings: Settings) -> Step:
    """Take deterministic steps (DDIM, arXiv 2010.02502, equation 12 with σ = 0)."""

    def step(x: jax.Array, number: jax.Array) -> jax.Array:
        index, time = _index(schedule, number, x)
        epsilon = jnp.split(predict(x, time), 2, axis=-1)[0]
        start = schedule.start(x, epsilon, index)
        if settings.clip:
            start = _clipped(start, settings.clip)
            # The noise that goes with the clipped data, or the next latents would keep what was clipped off.
            rest = x - lookup(schedule.alpha_bar**0.5, index) * start
            epsilon = rest / lookup((1.0 - schedule.alpha_bar) ** 0.5, index)
        before = schedule.previous_alpha_bar
        return lookup(before**0.5, index) * start + lookup((1.0 - before) ** 0.5, index) * epsilon

    return step


def _flow(predict: Step, schedule: FlowSchedule, steps: int, heun: bool) -> Step:
    """Take Euler or Heun steps of equal length along the velocity, from t = 1 to 0."""

    def step(x: jax.Array, number: jax.Array) -> jax.Array:
        time, after = 1.0 - (number - 1.0) / steps, 1.0 - number / steps
        velocity = predict(x, schedule.network_time(time))
        reached = x - velocity / steps
        if not heun:
            return reached
        return x - 0.5 * (velocity + predict(reached, schedule.network_time(after))) / steps

    return step
