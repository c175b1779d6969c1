"""Updates that would do harm: found and left out inside the step, counted and bounded outside of it.

An update is left out when a loss or the gradient's norm is not finite, or when the loss or the norm is above its median
over the last updates by a factor (of the step's own numbers, so that every host decides alike). Parameters, optimiser
and moving average then stay; the step's number, the learning rate's schedule and the data go on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from unihetero_jax.config import TrainConfig

# Of the state: the losses and norms of the last updates that were made, [spike_window] each, and how many there were.
HISTORY = "history"

# The metric, and the item of a checkpoint that keeps count.
UPDATE_SKIPPED = "update_skipped"
LEFT_OUT = "left_out"


def initial(config: TrainConfig) -> dict[str, Any]:
    """The part of the state before the first step that spikes are judged by; empty when only finiteness counts."""
    if not (config.spike_loss or config.spike_norm):
        return {}
    nothing = jnp.zeros(config.spike_window, jnp.float32)
    return {HISTORY: {"loss": nothing, "norm": nothing, "count": jnp.int32(0)}}


def judge(
    config: TrainConfig, state: Mapping[str, Any], losses: Iterable[jax.Array], loss: jax.Array, norm: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """Whether an update is to be made.

    Args:
      config: of the run.
      state: before the update; its history decides once it is as long as the window.
      losses: the mean of each loss.
      loss: their sum by weight.
      norm: of the gradient, before clipping.

    Returns:
      A scalar, true: make it; and the part of the next state that spikes are judged by.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    for value in losses:
        good &= jnp.isfinite(value)
    if HISTORY not in state:
        return good, {}
    history = state[HISTORY]
    known = history["count"] >= config.spike_window
    for name, value, factor in (("loss", loss, config.spike_loss), ("norm", norm, config.spike_norm)):
        if factor:
            good &= ~(known & (value > factor * jnp.median(history[name])))
    place = history["count"] % config.spike_window
    added = {name: history[name].at[place].set(value) for name, value in (("loss", loss), ("norm", norm))}
    return good, {HISTORY: choose(good, added | {"count": history["count"] + 1}, history)}


def choose(good: jax.Array, new: Any, old: Any) -> Any:
    """A tree after an update that is made, or before it. The count of the learning rate's schedule goes on anyway."""

    def pick(new: Any, old: Any) -> Any:
        return new if isinstance(new, optax.ScaleByScheduleState) else jnp.where(good, new, old)

    return jax.tree.map(pick, new, old, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))


class Budget:
    """How many updates were left out of late, and how often the run went back because of it.

    Attributes:
      skipped: steps of the last ``spike_window`` whose update was left out.
      rollbacks: how often.
    """

    def __init__(self, config: TrainConfig, saved: Mapping[str, Any]):
        self._config = config
        self.skipped = [int(step) for step in saved.get("skipped", ())]
        self.rollbacks = int(saved.get("rollbacks", 0))

    def spend(self, step: int) -> bool:
        """Counts a step without an update; whether there may be so many."""
        self.skipped = [before for before in self.skipped if before > step - self._config.spike_window]
        self.skipped.append(step)
        return len(self.skipped) <= self._config.max_skipped_updates

    def to_json(self, step: int) -> dict[str, Any]:
        """What a checkpoint of a step keeps of it; empty when there is nothing to keep."""
        recent = [before for before in self.skipped if before > step - self._config.spike_window]
        return {"skipped": recent, "rollbacks": self.rollbacks} if recent or self.rollbacks else {}


def reason(values: Mapping[str, float], losses: Iterable[str]) -> str:
    """Which of a step's metrics is not finite; empty when all are."""
    names = (*losses, "loss", "grad_norm")
    return next((f"{name} is {values[name]}" for name in names if not math.isfinite(values[name])), "")
