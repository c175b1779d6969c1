"""The train step: a pure function of state and batch, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unihetero_jax.data.records.invalid import SKIP_REASONS
from unihetero_jax.losses.base import mean
from unihetero_jax.parallel.compiler_flags import compiler_options
from unihetero_jax.parallel.definition import Params
from unihetero_jax.parallel.mesh import constrain
from unihetero_jax.parallel.paths import join
from unihetero_jax.train import gradients, spikes
from unihetero_jax.train.learner import Batch, Learner, Scalars, split_rows
from unihetero_jax.train.state import State, learning_rate_schedule

Metrics = dict[str, jax.Array]
# The metrics that count records left out, by reason.
SKIPPED = tuple(f"skipped_{reason}" for reason in SKIP_REASONS)


def make_step(
    learner: Learner, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The step of a learner: (state, batch) → (next state, metrics). Pure; compile it with ``compile_step``.

    Only the trained part of the parameters is differentiated and updated. Metrics are float32 scalars over the global
    batch: ``loss``, each loss's mean, what the learner monitors, ``grad_norm`` (of what is trained, before clipping),
    ``learning_rate`` (without a group's factor), ``packed`` (share of slots in use), ``tokens`` (slots in use),
    ``samples``, ``skipped`` (since the run began) and the counts of which it is the sum (``SKIPPED``), and
    ``update_skipped``: 1 where the update was left out (``spikes``); with ``gradient_cosines_every`` also those of
    ``gradients.compare``, NaN on steps that are not due.
    """
    accumulation = learner.config.train.accumulation
    schedule = learning_rate_schedule(learner.config.optimizer, learner.config.train.steps)
    every = learner.config.train.gradient_cosines_every

    def share(
        trained: Params, frozen: Params, ema: Params, batch: Batch, totals: Scalars, step: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[Scalars, Any]]:
        """What one accumulation step adds to the loss, and its sums and monitors."""
        sums, monitors = learner.loss_sums(join(frozen, trained), ema, batch, key, mesh)
        return learner.combine(step, sums, totals), (sums, monitors)

    def step_function(state: State, batch: Batch) -> tuple[State, Metrics]:
        step = state["step"]
        trained, frozen = learner.split(state["params"])
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), step)
        totals = learner.totals(batch)

        def part(number: jax.Array | int, rows: Batch) -> Any:
            rows = {name: constrain(array, mesh, "batch", *[None] * (array.ndim - 1)) for name, array in rows.items()}
            gradient = jax.grad(share, has_aux=True)
            return gradient(trained, frozen, state["ema"], rows, totals, step, jax.random.fold_in(key, number))

        if accumulation == 1:
            grads, (sums, monitors) = part(0, batch)
        else:
            parts = jnp.arange(accumulation), {name: split_rows(array, accumulation) for name, array in batch.items()}
            shapes = jax.eval_shape(lambda scanned: part(*jax.tree.map(lambda x: x[0], scanned)), parts)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

            def accumulate(carry: Any, scanned: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, part(*scanned)), None

            (grads, (sums, monitors)), _ = jax.lax.scan(accumulate, zeros, parts)

        angles: Metrics = {}
        if every:
            measure = partial(gradients.compare, learner, mesh=mesh)
            arguments = (trained, frozen, state["ema"], batch, totals, step, key)
            unknown = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), jax.eval_shape(measure, *arguments))
            angles = jax.lax.cond(gradients.due(every, step), measure, lambda *_: unknown, *arguments)
        loss, norm = learner.combine(step, sums, totals), optax.global_norm(grads)
        means = {name: mean(sums[name], totals[name]) for name in sums}
        good, judged_by = spikes.judge(learner.config.train, state, means.values(), loss, norm)
        updates, opt_state = optimizer.update(grads, state["opt_state"], trained)
        opt_state = spikes.choose(good, opt_state, state["opt_state"])
        trained = spikes.choose(good, optax.apply_updates(trained, updates), trained)
        ema, decay = state["ema"], learner.ema_decay
        if ema:
            averaged = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, learner.averaged(trained))
            ema = spikes.choose(good, averaged, ema)
        used = jnp.sum(batch["segment"] > 0)
        metrics = {
            "loss": loss,
            **means,
            **learner.metrics(monitors, sums, totals),
            **angles,
            "grad_norm": norm,
            "learning_rate": schedule(step),
            "packed": used / batch["segment"].size,
            "tokens": used,
            "samples": jnp.sum(jnp.max(batch["segment"], axis=1)),
            "skipped": jnp.sum(batch["skipped"]),
            **dict(zip(SKIPPED, jnp.sum(batch["skipped"], axis=0), strict=True)),
            spikes.UPDATE_SKIPPED: ~good,
        }
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        params = join(frozen, trained)
        return {**state, **judged_by, "params": params, "opt_state": opt_state, "ema": ema, "step": step + 1}, metrics

    def with_precision(state: State, batch: Batch) -> tuple[State, Metrics]:
        with jax.default_matmul_precision("highest" if learner.precise else None):
            return step_function(state, batch)

    return with_precision


def compile_step(step: Callable[..., Any], shardings: State, mesh: Mesh) -> Any:
    """``jax.jit`` of a step with the state's shardings pinned on both sides and its memory reused.

    It is compiled with the flags of the mesh's generation of chips.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(shardings, None),
        out_shardings=(shardings, whole),
        donate_argnums=0,
        compiler_options=compiler_options(mesh.devices.ravel().tolist()) or None,
    )
