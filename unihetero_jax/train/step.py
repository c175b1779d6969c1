"""The train step: a pure function of state and batch, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unihetero_jax.data.records.invalid import FILTERED, SKIP_REASONS
from unihetero_jax.losses.base import mean
from unihetero_jax.parallel.compiler_flags import compiler_options
from unihetero_jax.parallel.module_definition import Params
from unihetero_jax.parallel.parameter_paths import join
from unihetero_jax.train import gradient_cosines, spikes
from unihetero_jax.train.learner import Batch, Inputs, Learner, Scalars, sum_over_parts
from unihetero_jax.train.learning_rate import learning_rate_schedule
from unihetero_jax.train.state import State

Metrics = dict[str, jax.Array]
# The metrics that count skipped records, by reason.
SKIPPED = tuple(f"skipped_{reason}" if reason != FILTERED else FILTERED for reason in SKIP_REASONS)


def make_step(
    learner: Learner, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """Build the step of a learner: (state, batch) → (next state, metrics). Pure; compile it with ``compile_step``.

    Only the trained part of the parameters is differentiated and updated. Metrics are float32 scalars over the global
    batch: ``loss``, each loss's mean, what the learner monitors, ``grad_norm`` (of what is trained, before clipping),
    ``learning_rate`` (without a group's factor), ``packed`` (share of slots in use), ``tokens`` (slots in use),
    ``samples``, ``skipped`` (bad records since the run began), its counts by reason and ``filtered`` (``SKIPPED``), and
    ``update_skipped``: 1 where the update was skipped (``spikes``); with ``gradient_cosines_every`` also those of
    ``gradient_cosines.compare``, NaN on steps that are not due.
    """
    config = learner.config.train
    schedule = learning_rate_schedule(learner.config.optimizer, config.steps)

    def step_function(state: State, batch: Batch) -> tuple[State, Metrics]:
        step = state["step"]
        trained, frozen = learner.split(state["params"])
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), step)
        inputs = Inputs(trained, frozen, state["ema"], batch, learner.totals(batch), step, key)

        def gradient(rows: Batch, number: jax.Array | int) -> tuple[Params, tuple[Scalars, Any]]:
            def share(trained: Params) -> tuple[jax.Array, tuple[Scalars, Any]]:
                sums, monitors = inputs.loss_sums(learner, trained, rows, number, mesh)
                return learner.combine(step, sums, inputs.totals), (sums, monitors)

            found: tuple[Params, tuple[Scalars, Any]] = jax.grad(share, has_aux=True)(trained)
            return found

        grads, (sums, monitors) = sum_over_parts(gradient, batch, config.accumulation, mesh)
        loss, norm = learner.combine(step, sums, inputs.totals), optax.global_norm(grads)
        means = {name: mean(sums[name], inputs.totals[name]) for name in sums}
        good, history = spikes.judge(config, state, means.values(), loss, norm)
        new = _update(learner, optimizer, state, trained, grads, good)
        metrics = {
            "loss": loss,
            **means,
            **learner.metrics(monitors, sums, inputs.totals),
            **gradient_cosines.compare_when_due(learner, inputs, mesh),
            "grad_norm": norm,
            "learning_rate": schedule(step),
            **_count(batch),
            spikes.UPDATE_SKIPPED: ~good,
        }
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        params = join(frozen, new.pop("trained"))
        return {**state, **history, **new, "params": params, "step": step + 1}, metrics

    def with_precision(state: State, batch: Batch) -> tuple[State, Metrics]:
        with jax.default_matmul_precision("highest" if learner.precise else None):
            return step_function(state, batch)

    return with_precision


def _update(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    state: State,
    trained: Params,
    grads: Params,
    good: jax.Array,
) -> dict[str, Any]:
    """Return the next trained parameters, optimizer state and moving average; the old ones where it is not good."""
    updates, opt_state = optimizer.update(grads, state["opt_state"], trained)
    opt_state = spikes.choose(good, opt_state, state["opt_state"])
    trained = spikes.choose(good, optax.apply_updates(trained, updates), trained)
    ema, decay = state["ema"], learner.ema_decay
    if ema:
        averaged = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, learner.averaged(trained))
        ema = spikes.choose(good, averaged, ema)
    return {"trained": trained, "opt_state": opt_state, "ema": ema}


def _count(batch: Batch) -> Scalars:
    """Count slots, samples and skipped records."""
    used = jnp.sum(batch["segment"] > 0)
    skipped = dict(zip(SKIPPED, jnp.sum(batch["skipped"], axis=0), strict=True))
    return {
        "packed": used / batch["segment"].size,
        "tokens": used,
        "samples": jnp.sum(jnp.max(batch["segment"], axis=1)),
        "skipped": jnp.sum(batch["skipped"]) - skipped[FILTERED],
        **skipped,
    }


def compile_step(step: Callable[..., Any], shardings: State, mesh: Mesh) -> Any:
    """Jit a step with the state's shardings fixed on both sides, its memory reused, and the chips' compiler flags."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(shardings, None),
        out_shardings=(shardings, whole),
        donate_argnums=0,
        compiler_options=compiler_options(mesh.devices.ravel().tolist()) or None,
    )
