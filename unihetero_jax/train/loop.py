"""The training loop: batches → steps → metrics → checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from unihetero_jax import checkpoint
from unihetero_jax.checkpoint_writer import CheckpointWriter
from unihetero_jax.data.packing import DataState
from unihetero_jax.data.pipeline import BatchStream
from unihetero_jax.errors import UsageError
from unihetero_jax.model.build import Params
from unihetero_jax.parallel.mesh import check_sharded, sharding
from unihetero_jax.parallel.processes import Preemption, barrier, is_first, place_rows, rows_here
from unihetero_jax.startup import log_file
from unihetero_jax.train.learner import Learner
from unihetero_jax.train.spikes import LEFT_OUT, UPDATE_SKIPPED, Budget, reason
from unihetero_jax.train.state import State, from_pure, initial_state, state_shardings, stored, to_pure
from unihetero_jax.train.step import SKIPPED, compile_step, make_step
from unihetero_jax.train.telemetry import METRICS, Display, MetricsLog, TensorBoard, Throughput
from unihetero_jax.train.watchdog import Watchdog

log = logging.getLogger(__name__)

OpenStream = Callable[[list[int], DataState | None], BatchStream]


class NonFiniteLoss(Exception):
    """The loss or the gradient is not a number, or far too large; the last good checkpoint is intact."""


class _Spike(Exception):
    """More updates were left out than may be; the data state is the one after this step."""

    def __init__(self, text: str, step: int, data_state: DataState):
        super().__init__(text)
        self.step, self.data_state = step, data_state


def train(
    learner: Learner,
    open_stream: OpenStream,
    workdir: Path,
    mesh: Mesh,
    preemption: Preemption,
) -> tuple[Params, bool]:
    """Trains to the config's ``train.steps``, from the newest checkpoint if there is one.

    Args:
      learner: what is trained, and by which losses.
      open_stream: (rows, saved data state or None) → the stream of these rows of the global batch.
      workdir: where metrics and checkpoints go.
      mesh: over all devices of all processes.
      preemption: asked after every step.

    Returns:
      The parameters, and whether training is complete (False: stopped by a signal, everything saved).

    Raises:
      NonFiniteLoss: naming the step and the objective.
      UsageError: mesh and config do not fit, or the checkpoint is another model's.
    """
    config = learner.config
    learner.check(mesh)
    optimizer = learner.optimizer()
    shapes, places = state_shardings(learner, optimizer, mesh)
    check_sharded(shapes["params"], places["params"])
    batch_sharding = sharding(mesh, "batch")
    rows = rows_here(batch_sharding, config.train.batch_size)

    writer = CheckpointWriter(workdir, config.checkpoint)
    try:
        first, moved_on, rollbacks = writer.found or 0, None, 0
        if first > config.train.steps:
            raise UsageError(
                f"{workdir} holds a checkpoint of step {first}, beyond config.train.steps={config.train.steps}"
            )
        while True:
            state, data_state, timers, left_out = _start(learner, optimizer, workdir, first, shapes, places, mesh)
            if first == config.train.steps:
                return state["params"], True
            budget = Budget(config.train, left_out)
            budget.rollbacks = max(budget.rollbacks, rollbacks)
            with closing(open_stream(rows, moved_on or data_state)) as stream:
                base = learner.base(state["params"])
                run = _Run(learner, workdir, mesh, writer, rows, batch_sharding, first, timers, base, budget)
                with closing(run):
                    try:
                        return run.steps(make_step(learner, optimizer, mesh), state, places, stream, preemption)
                    except _Spike as spike:
                        text, step, moved_on = str(spike), spike.step, spike.data_state
            # Here nothing holds the state of the failed attempt any more.
            del state
            rollbacks, most = budget.rollbacks + 1, config.train.max_rollbacks
            allowed = config.train.on_spike == "rollback" and rollbacks <= most
            back = writer.go_back(budget.skipped[0]) if allowed else None
            if back is None:
                raise NonFiniteLoss(text)
            first = back
            log.warning(
                "step %d: too many updates left out; back to step %d, and on with the data after step %d (%d of %d)",
                *(step, first, step, rollbacks, most),
            )
    finally:
        writer.close()


def _start(
    learner: Learner, optimizer: Any, workdir: Path, step: int, shapes: State, places: State, mesh: Mesh
) -> tuple[State, DataState | None, dict[str, float], dict[str, Any]]:
    """State, data state, timers and left out updates to go on from: restored, or new at step 0."""
    if not step:
        state = jax.jit(lambda: initial_state(learner, optimizer), out_shardings=places)()
        state["params"] = learner.start(state["params"], mesh)
        # A copy: the step is given both, and may use the memory of each for its result.
        state["ema"] = jax.tree.map(jnp.copy, learner.averaged(learner.split(state["params"])[0]))
        return state, None, {}, {}
    path = workdir / checkpoint.CHECKPOINTS / str(step)
    wanted = to_pure(stored(learner, shapes)), to_pure(stored(learner, places))
    state = from_pure(checkpoint.restore_tree(path / "state", *wanted), shapes)
    if learner.partial:
        base = checkpoint.read_json(workdir, step, "base")
        state["params"] = learner.complete(state["params"], base, path, mesh)
    data_state: DataState = checkpoint.restore_numpy(path / "data")
    left_out = checkpoint.read_json(workdir, step, LEFT_OUT) if (path / LEFT_OUT).is_dir() else {}
    return state, data_state, checkpoint.read_json(workdir, step, "timers"), left_out


class _Run:
    """What one call of ``train`` holds open."""

    def __init__(
        self,
        learner: Learner,
        workdir: Path,
        mesh: Mesh,
        writer: CheckpointWriter,
        rows: list[int],
        batch_sharding: NamedSharding,
        first: int,
        timers: dict[str, float],
        base: dict[str, str] | None,
        budget: Budget,
    ):
        config = learner.config
        self._learner, self._config, self._mesh, self._writer = learner, config, mesh, writer
        self._rows, self._batch_sharding = rows, batch_sharding
        self._first, self._last = first, config.train.steps
        self._base, self._budget = base, budget
        self._trained_before = timers.get("train_seconds", 0.0)
        self._throughput = Throughput()
        self._watchdog = Watchdog(config.train.hang_timeout, log_file(workdir, jax.process_index(), "stacks"))
        self._display = self._metrics = self._tensorboard = None
        if is_first():
            self._metrics = MetricsLog(workdir / METRICS, first)
            self._display = Display(first, self._last, config.logging.every_steps)
            if config.logging.tensorboard:
                self._tensorboard = TensorBoard(workdir, first)

    def steps(
        self, step_function: Any, state: State, places: State, stream: BatchStream, preemption: Preemption
    ) -> tuple[Params, bool]:
        started = time.perf_counter()
        batch, data_state, waited = self._draw(stream)
        # Compiled ahead of time: a batch of another shape is then an error, never a silent recompilation.
        compiled = compile_step(step_function, places, self._mesh).lower(state, batch).compile()
        log.info("compiled the step in %.1f s", time.perf_counter() - started)
        self._throughput = Throughput()
        # Not all hosts compile equally fast, and one that waits for another is not hung.
        barrier("compiled")
        self._watchdog.start()
        unread: tuple[int, dict[str, jax.Array], float, DataState] | None = None
        for step in range(self._first + 1, self._last + 1):
            # The order matters. The step is launched before the metrics of the one before it are read, so that the
            # device never waits for the host. A batch is drawn only after a due save, so that the data state saved with
            # step N is the one after N batches. And the rows up to N are on disk before checkpoint N exists.
            state, metrics = compiled(state, batch)
            if unread is not None:
                self._record(*unread)
            unread = (step, metrics, waited, data_state)
            stop = preemption.requested(step)
            if stop or step == self._last or step % self._config.checkpoint.every_steps == 0:
                self._record(*unread)
                unread = None
                self._save(step, state, data_state, required=stop or step == self._last)
            if stop and step < self._last:
                return state["params"], False
            if step < self._last:
                batch, data_state, waited = self._draw(stream)
        return state["params"], True

    def close(self) -> None:
        self._watchdog.close()
        for part in (self._metrics, self._display, self._tensorboard):
            if part is not None:
                part.close()

    def _draw(self, stream: BatchStream) -> tuple[dict[str, jax.Array], DataState, float]:
        started = time.perf_counter()
        local, data_state = next(stream)
        waited = time.perf_counter() - started
        return {name: self._place(array) for name, array in local.items()}, data_state, waited

    def _place(self, local: np.ndarray) -> jax.Array:
        return place_rows(local, self._rows, self._config.train.batch_size, self._batch_sharding)

    def _record(self, step: int, metrics: dict[str, jax.Array], waited: float, data_state: DataState) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._watchdog.alive(step)
        # Reasons for which nothing was left out are not worth a column.
        values = {name: value for name, value in values.items() if value or name not in (*SKIPPED, UPDATE_SKIPPED)}
        timing = self._throughput.step(waited, values["samples"], values["tokens"])
        if self._writer.failed:
            timing["failed_saves"] = float(self._writer.failed)
        why = reason(values, self._learner.losses)
        if UPDATE_SKIPPED in values:
            self._left_out(step, why, data_state)
        elif why:
            raise NonFiniteLoss(self._stop(step, why))
        order = ("loss", *self._learner.losses)
        row = {"step": step, **{name: values[name] for name in order}, **values, "timing": timing}
        if self._metrics is not None:
            self._metrics.write(row)
        if self._tensorboard is not None:
            self._tensorboard.write(row)
        if self._display is not None:
            self._display.step(step, values["loss"], self._throughput)

    def _left_out(self, step: int, why: str, data_state: DataState) -> None:
        config = self._config.train
        why = why or "loss or grad_norm is far above its median"
        if not self._budget.spend(step):
            raise _Spike(self._stop(step, why), step, data_state)
        if is_first():
            log.warning(
                "step %d: %s; the update is left out (%d of %d that may be in %d steps)",
                *(step, why, len(self._budget.skipped), config.max_skipped_updates, config.spike_window),
            )

    def _stop(self, step: int, why: str) -> str:
        latest = self._writer.latest()
        kept = f"the last good checkpoint is step {latest}" if latest else "there is no checkpoint yet"
        return f"step {step}: {why}; {kept}"

    def _save(self, step: int, state: State, data_state: DataState, required: bool) -> None:
        obstacle = ""
        try:
            if self._metrics is not None:
                self._metrics.sync()
        except OSError as error:
            obstacle = f"{METRICS}: {error.strerror or error}"
        placed = {name: self._place(array) for name, array in data_state.items()}
        timers = {"train_seconds": self._trained_before + self._throughput.seconds}
        left_out = self._budget.to_json(step)
        besides = {LEFT_OUT: left_out} if left_out else {}
        if self._base is not None:
            besides["base"] = self._base
        self._writer.save(
            step, to_pure(stored(self._learner, state)), placed, self._config, timers, besides, required, obstacle
        )
