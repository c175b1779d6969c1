"""Harmful updates: detected and skipped inside the step, counted and limited outside of it.

An update is skipped when a loss or the gradient's norm is not finite, or when the loss or the norm exceeds its median
over the last updates by a factor (from the step's own numbers, so that all hosts decide alike). Parameters, optimizer
state and moving average then do not change; step number, learning rate schedule and data advance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from unihetero_jax.config import TrainConfig

# Part of the state: losses and norms of the last updates, [spike_window] each, and their number.
HISTORY = "history"

# The metric, and the item of a checkpoint that stores the budget.
UPDATE_SKIPPED = "update_skipped"
SKIPPED_UPDATES = "skipped_updates"


def initial(config: TrainConfig) -> dict[str, Any]:
    """Return the initial history; empty when an update only needs to be finite."""
    if not (config.spike_loss or config.spike_norm):
        return {}
    nothing = jnp.zeros(config.spike_window, jnp.float32)
    return {HISTORY: {"loss": nothing, "norm": nothing, "count": jnp.int32(0)}}


def judge(
    config: TrainConfig, state: Mapping[str, Any], losses: Iterable[jax.Array], loss: jax.Array, norm: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """Decide whether an update is to be made.

    Args:
      config: the run's configuration.
      state: before the update; its history decides once it is as long as the window.
      losses: the mean of each loss.
      loss: their sum by weight.
      norm: of the gradient, before clipping.

    Returns:
      A boolean scalar; and the history of the next state.
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
    """Choose a tree after an update, or before it; the count of the learning rate schedule advances either way."""

    def pick(new: Any, old: Any) -> Any:
        return new if isinstance(new, optax.ScaleByScheduleState) else jnp.where(good, new, old)

    return jax.tree.map(pick, new, old, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))


class Budget:
    """Limit of skipped updates, and of the rollbacks that they cause.

    Args:
      config: the run's configuration.
      saved: the budget in the checkpoint that the run continues from.
      rollbacks: in this start.

    Attributes:
      skipped: steps of the last ``spike_window`` whose update was skipped.
      rollbacks: number of rollbacks so far.
    """

    def __init__(self, config: TrainConfig, saved: Mapping[str, Any], rollbacks: int):
        self._config = config
        self.skipped = [int(step) for step in saved.get("skipped", ())]
        self.rollbacks = max(int(saved.get("rollbacks", 0)), rollbacks)

    def spend(self, step: int) -> bool:
        """Count a step without an update; return whether the limit allows it."""
        self.skipped = [before for before in self.skipped if before > step - self._config.spike_window]
        self.skipped.append(step)
        return len(self.skipped) <= self._config.max_skipped_updates

    def to_json(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint of a step stores; may be empty."""
        recent = [before for before in self.skipped if before > step - self._config.spike_window]
        return {"skipped": recent, "rollbacks": self.rollbacks} if recent or self.rollbacks else {}


def not_finite(values: Mapping[str, float], losses: Iterable[str]) -> str:
    """Name the first of a step's metrics that is not finite; empty when all are."""
    names = (*losses, "loss", "grad_norm")
    return next((f"{name} is {values[name]}" for name in names if not math.isfinite(values[name])), "")
