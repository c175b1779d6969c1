"""The training loop: batches → steps → metrics → checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.checkpoint.writer import CheckpointWriter
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.definition import Params
from unihetero_jax.parallel.mesh import check_sharded, sharding
from unihetero_jax.parallel.processes import Preemption, barrier, is_first, place_rows, rows_here
from unihetero_jax.train import hosts
from unihetero_jax.train.gradients import measured
from unihetero_jax.train.learner import Learner
from unihetero_jax.train.monitor.goodput import Goodput
from unihetero_jax.train.monitor.host_log import log_file
from unihetero_jax.train.monitor.profiling import Profiler
from unihetero_jax.train.monitor.telemetry import (
    METRICS,
    Display,
    MetricsLog,
    TensorBoard,
    Throughput,
    Writer,
)
from unihetero_jax.train.monitor.utilization import explain, measure_work, memory_bytes
from unihetero_jax.train.monitor.watchdog import Watchdog
from unihetero_jax.train.monitor.weights_and_biases import WeightsAndBiases
from unihetero_jax.train.spikes import LEFT_OUT, UPDATE_SKIPPED, Budget, reason
from unihetero_jax.train.state import State, from_pure, initial_state, state_shardings, stored, to_pure
from unihetero_jax.train.step import SKIPPED, compile_step, make_step

log = logging.getLogger(__name__)


class Stream(Protocol):
    """Batches of some rows of the global batch, each with the data state after it (``data.packing.batch_stream``)."""

    def __next__(self) -> tuple[PackedBatch, DataState]: ...

    def close(self) -> None:
        """Stops whatever makes batches ahead of time."""


OpenStream = Callable[[list[int], DataState | None], Stream]


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
    goodput: Goodput | None = None,
) -> tuple[Params, bool]:
    """Trains to the config's ``train.steps``, from the newest checkpoint if there is one.

    Args:
      learner: what is trained, and by which losses.
      open_stream: (rows, saved data state or None) → the stream of these rows of the global batch.
      workdir: where metrics and checkpoints go.
      mesh: over all devices of all processes.
      preemption: asked after every step.
      goodput: the clock of this start, if anyone reads it.

    Returns:
      The parameters, and whether training is complete (False: stopped by a signal, everything saved).

    Raises:
      NonFiniteLoss: naming the step and the objective.
      UsageError: mesh and config do not fit, or the checkpoint is another model's.
    """
    config = learner.config
    goodput = goodput or Goodput(None)
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
        goodput.lap("start")
        while True:
            state, data_state, timers, left_out = _start(learner, optimizer, workdir, first, shapes, places, mesh)
            goodput.begin(first)
            if first == config.train.steps:
                return state["params"], True
            budget = Budget(config.train, left_out)
            budget.rollbacks = max(budget.rollbacks, rollbacks)
            with closing(open_stream(rows, moved_on or data_state)) as stream:
                base = learner.base(state["params"])
                run = _Run(learner, workdir, mesh, writer, rows, batch_sharding, first, timers, base, budget, goodput)
                with closing(run):
                    try:
                        return run.steps(make_step(learner, optimizer, mesh), state, places, stream, preemption)
                    except _Spike as spike:
                        text, step, moved_on = str(spike), spike.step, spike.data_state
            goodput.lap("step")
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
        goodput: Goodput,
    ):
        config = learner.config
        self._learner, self._config, self._mesh, self._writer = learner, config, mesh, writer
        self._rows, self._batch_sharding = rows, batch_sharding
        self._first, self._last = first, config.train.steps
        self._base, self._budget, self._goodput = base, budget, goodput
        self._trained_before = timers.get("train_seconds", 0.0)
        self._throughput = Throughput()
        self._watchdog = Watchdog(config.train.hang_timeout, log_file(workdir, jax.process_index(), "stacks"))
        self._display = self._metrics = None
        self._writers: list[Writer] = []
        if is_first():
            if config.logging.wandb:
                self._writers.append(WeightsAndBiases(workdir, config))
            if config.logging.tensorboard:
                self._writers.append(TensorBoard(workdir, first))
            self._metrics = MetricsLog(workdir / METRICS, first)
            self._display = Display(first, self._last)
        self._profiler = Profiler(workdir, config.logging.profile_steps, config.logging.signal_steps)

    def steps(
        self, step_function: Any, state: State, places: State, stream: Stream, preemption: Preemption
    ) -> tuple[Params, bool]:
        batch, data_state, waited = self._draw(stream)
        started = time.perf_counter()
        # Compiled ahead of time: a batch of another shape is then an error, never a silent recompilation.
        compiled = compile_step(step_function, places, self._mesh).lower(state, batch).compile()
        log.info("compiled the step in %.1f s", time.perf_counter() - started)
        self._throughput = self._open_throughput(compiled)
        self._goodput.lap("compile", "compiled")
        # Not all hosts compile equally fast, and one that waits for another is not hung.
        barrier("compiled")
        self._watchdog.start()
        unread: tuple[int, dict[str, jax.Array], float, DataState] | None = None
        for step in range(self._first + 1, self._last + 1):
            # The order matters. The step is launched before the metrics of the one before it are read, so that the
            # device never waits for the host. A batch is drawn only after a due save, so that the data state saved with
            # step N is the one after N batches. And the rows up to N are on disk before checkpoint N exists.
            self._profiler.before(step)
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
                batch, data_state, waited = self._draw(stream, metrics)
        return state["params"], True

    def close(self) -> None:
        self._watchdog.close()
        self._profiler.close()
        for part in (self._metrics, self._display, *self._writers):
            if part is not None:
                part.close()
        if is_first() and self._throughput.seconds:
            log.info("%s", self._throughput.summary())

    def _open_throughput(self, compiled: Any) -> Throughput:
        logging, devices = self._config.logging, list(self._mesh.devices.flat)
        work = measure_work(self._learner.work(), devices, logging.peak_flops, self._learner.precise)
        if work is not None and is_first():
            explain(work, compiled)
        return Throughput(logging.every_steps, self._last, work, len(devices), memory_bytes)

    def _draw(
        self, stream: Stream, running: dict[str, Any] | None = None
    ) -> tuple[dict[str, jax.Array], DataState, float]:
        """The next batch; ``running``: metrics of the step that the devices have meanwhile, if they have one."""
        self._goodput.lap("step" if running else "start")
        started = time.perf_counter()
        local, data_state = next(stream)
        waited = time.perf_counter() - started
        batch = {name: self._place(array) for name, array in local.items()}
        # Devices that still have a step to do have not waited.
        self._goodput.lap("data" if running is None or running["loss"].is_ready() else "step")
        return batch, data_state, waited

    def _place(self, local: np.ndarray) -> jax.Array:
        return place_rows(local, self._rows, self._config.train.batch_size, self._batch_sharding)

    def _record(self, step: int, metrics: dict[str, jax.Array], waited: float, data_state: DataState) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._watchdog.alive(step)
        # Reasons for which nothing was left out are not worth a column.
        values = {name: value for name, value in values.items() if value or name not in (*SKIPPED, UPDATE_SKIPPED)}
        values = {name: value for name, value in values.items() if not (measured(name) and math.isnan(value))}
        self._profiler.after(step)
        timing = self._throughput.step(step, waited, values["samples"], values["tokens"])
        self._goodput.done(step)
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
        for writer in self._writers:
            writer.write(row)
        others = ""
        if self._throughput.ends_window(step):
            others = hosts.compare_data_wait(self._throughput.window["waiting"])
        if self._display is not None:
            self._display.step(step, values["loss"], self._throughput, others)

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
        timers |= {f"{cause}_seconds": seconds for cause, seconds in self._goodput.account().seconds.items()}
        left_out = self._budget.to_json(step)
        besides = {LEFT_OUT: left_out} if left_out else {}
        if self._base is not None:
            besides["base"] = self._base
        self._writer.save(
            step, to_pure(stored(self._learner, state)), placed, self._config, timers, besides, required, obstacle
        )
        self._goodput.saved()
