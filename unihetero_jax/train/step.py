"""The train step: a pure function of state and batch, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unihetero_jax import objectives
from unihetero_jax.config import Config
from unihetero_jax.model import groups
from unihetero_jax.model.build import ModelDefinition, Params
from unihetero_jax.model.unified import Batch, UnifiedModel, Visual
from unihetero_jax.parallel.mesh import constrain
from unihetero_jax.train.state import State, learning_rate_schedule, teacher_part

Metrics = dict[str, jax.Array]


def make_step(
    config: Config, model: ModelDefinition, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The step of a config: (state, batch) → (next state, metrics). Pure; compile it with ``compile_step``.

    Only the trained part of the parameters is differentiated and updated. Metrics are float32 scalars over the global
    batch: ``loss``, each objective's mean, ``grad_norm`` (of what is trained, before clipping), ``learning_rate``
    (without a group's factor), ``packed`` (share of slots in use), ``tokens`` (slots in use), ``samples``, ``skipped``.
    """
    settings, accumulation = config.objectives, config.train.accumulation
    schedule = learning_rate_schedule(config.optimizer, config.train.steps)

    def share(
        trained: Params,
        frozen: Params,
        ema: Params,
        batch: Batch,
        totals: objectives.Scalars,
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, objectives.Scalars]:
        """What one accumulation step adds to the loss, and its sums."""
        params = groups.join(frozen, trained)
        bound = model.bind(params, key if config.model.lora.dropout else None)
        dropout_key = key if config.model.decoder.dropout else None
        sums = objectives.loss_sums(
            settings, bound, batch, teacher=see(model, params, ema, batch), dropout_key=dropout_key, mesh=mesh
        )
        return objectives.combine(settings, step, sums, totals), sums

    def step_function(state: State, batch: Batch) -> tuple[State, Metrics]:
        step = state["step"]
        trained, frozen = groups.split(config, state["params"])
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), step)
        totals = objectives.weights(settings, batch)
        gradient = jax.grad(share, has_aux=True)

        def accumulate(carry: Any, scanned: Any) -> tuple[Any, None]:
            number, part = scanned
            part = {name: constrain(array, mesh, "batch", *[None] * (array.ndim - 1)) for name, array in part.items()}
            found = gradient(trained, frozen, state["ema"], part, totals, step, jax.random.fold_in(key, number))
            return jax.tree.map(jnp.add, carry, found), None

        if accumulation == 1:
            grads, sums = gradient(trained, frozen, state["ema"], batch, totals, step, jax.random.fold_in(key, 0))
        else:
            zeros = jax.tree.map(jnp.zeros_like, trained), {name: jnp.float32(0.0) for name in totals}
            parts = {name: split_rows(array, accumulation) for name, array in batch.items()}
            (grads, sums), _ = jax.lax.scan(accumulate, zeros, (jnp.arange(accumulation), parts))

        updates, opt_state = optimizer.update(grads, state["opt_state"], trained)
        trained = optax.apply_updates(trained, updates)
        ema = state["ema"]
        if ema:
            decay = settings.semantic.ema_decay
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, teacher_part(trained))
        used = jnp.sum(batch["segment"] > 0)
        metrics = {
            "loss": objectives.combine(settings, step, sums, totals),
            **{name: objectives.mean(sums[name], totals[name]) for name in sums},
            "grad_norm": optax.global_norm(grads),
            "learning_rate": schedule(step),
            "packed": used / batch["segment"].size,
            "tokens": used,
            "samples": jnp.sum(jnp.max(batch["segment"], axis=1)),
            "skipped": jnp.sum(batch["skipped"]),
        }
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        params = groups.join(frozen, trained)
        return {**state, "params": params, "opt_state": opt_state, "ema": ema, "step": step + 1}, metrics

    def with_precision(state: State, batch: Batch) -> tuple[State, Metrics]:
        # "float32 throughout" must also hold on chips whose default for float32 products is fewer bits.
        precision = "highest" if config.model.decoder.dtype == "float32" else None
        with jax.default_matmul_precision(precision):
            return step_function(state, batch)

    return with_precision


def see(model: ModelDefinition, params: Params, ema: Params, batch: Batch) -> Visual | None:
    """What the moving-average tower and adapter make of a batch; None without one."""
    if not ema:
        return None
    teacher: UnifiedModel = model.bind(groups.join(params, ema))
    return teacher.see(batch["images"])


def split_rows(array: jax.Array, parts: int) -> jax.Array:
    """[B, …] → [parts, B / parts, …], each part with rows of every device, so that no row moves."""
    return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)


def compile_step(step: Callable[..., Any], shardings: State, mesh: Mesh) -> Any:
    """``jax.jit`` of a step with the state's shardings pinned on both sides and its memory reused."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, in_shardings=(shardings, None), out_shardings=(shardings, whole), donate_argnums=0)
