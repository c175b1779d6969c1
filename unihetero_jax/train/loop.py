"""The training loop: batches → steps → metrics → checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from unihetero_jax.checkpoint import identity
from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.checkpoint.writer import CheckpointWriter
from unihetero_jax.data.packing.row_stream import DataState
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.mesh import check_sharded, sharding
from unihetero_jax.parallel.module_definition import Params
from unihetero_jax.parallel.processes import Preemption, barrier, is_first, place_rows, rows_here
from unihetero_jax.train import hosts
from unihetero_jax.train.gradient_cosines import is_measurement
from unihetero_jax.train.hooks import NONE, Hooks
from unihetero_jax.train.learner import Learner, OpenStream, Stream
from unihetero_jax.train.learning_rate import learning_rate_schedule
from unihetero_jax.train.monitor.goodput import Goodput
from unihetero_jax.train.monitor.host_log import log_file
from unihetero_jax.train.monitor.profiling import Profiler
from unihetero_jax.train.monitor.telemetry import METRICS, Display, MetricsLog, TensorBoard, Throughput, Writer
from unihetero_jax.train.monitor.utilization import log_work, measure_work, memory_bytes
from unihetero_jax.train.monitor.watchdog import Watchdog
from unihetero_jax.train.monitor.weights_and_biases import WeightsAndBiases
from unihetero_jax.train.spikes import SKIPPED_UPDATES, UPDATE_SKIPPED, Budget, not_finite
from unihetero_jax.train.state import State, from_pure, start_new, state_shardings, stored, to_pure
from unihetero_jax.train.step import SKIPPED, compile_step, make_step

log = logging.getLogger(__name__)


class NonFiniteLoss(Exception):
    """The loss or the gradient is not finite, or far too large; the last good checkpoint is intact."""


class _Spike(Exception):
    """Too many updates were skipped; the data state is the one after this step."""

    def __init__(self, text: str, step: int, data_state: DataState):
        super().__init__(text)
        self.step, self.data_state = step, data_state


@dataclass(frozen=True)
class _Job:
    """What all attempts of one call of ``train`` have in common.

    Attributes:
      learner: what is trained.
      workdir: where metrics and checkpoints go.
      mesh: over all devices of all processes.
      writer: of the checkpoints.
      goodput: clock of this start.
      hooks: what is called on the way.
    """

    learner: Learner
    workdir: Path
    mesh: Mesh
    writer: CheckpointWriter
    goodput: Goodput
    hooks: Hooks


class _Start(NamedTuple):
    """Where an attempt starts: after a step, restored or new.

    Attributes:
      step: done before.
      state: training state after it.
      data_state: of the batches, after it; None: the beginning.
      timers: seconds of training by name, of all starts before.
      skipped: what ``spikes.Budget`` saved.
    """

    step: int
    state: State
    data_state: DataState | None
    timers: dict[str, float]
    skipped: dict[str, Any]


class _Step(NamedTuple):
    """A step whose metrics have not been read.

    Attributes:
      number: of the step.
      metrics: on the devices.
      waited: seconds until its batch was there.
      data_state: after its batch.
    """

    number: int
    metrics: dict[str, jax.Array]
    waited: float
    data_state: DataState


def train(
    learner: Learner,
    open_stream: OpenStream,
    workdir: Path,
    mesh: Mesh,
    preemption: Preemption,
    goodput: Goodput | None = None,
    hooks: Hooks = NONE,
) -> tuple[Params, bool]:
    """Train to the config's ``train.steps``, from the newest checkpoint if there is one.

    Args:
      learner: what is trained, and by which losses.
      open_stream: (rows, saved data state or None) → the stream of these rows of the global batch.
      workdir: where metrics and checkpoints go.
      mesh: over all devices of all processes.
      preemption: checked after every step.
      goodput: clock of this start, if it is recorded.
      hooks: what is called on the way.

    Returns:
      The parameters, and whether training is complete (False: stopped by a signal, everything saved).

    Raises:
      NonFiniteLoss: naming the step and the loss.
      UsageError: mesh and config do not fit, or the checkpoint is another model's.
    """
    config, saving = learner.config.train, learner.config.checkpoint
    learner.check(mesh)
    optimizer = learner.optimizer()
    shapes, places = state_shardings(learner, optimizer, mesh)
    check_sharded(shapes["params"], places["params"])
    rows = rows_here(sharding(mesh, "batch"), config.batch_size)
    writer = CheckpointWriter(workdir, saving, hooks.before_commit)
    job = _Job(learner, workdir, mesh, writer, goodput or Goodput(None), hooks)
    try:
        first, resume_data, rollbacks = job.writer.found or 0, None, 0
        if first > config.steps:
            raise UsageError(f"{workdir} holds a checkpoint of step {first}, beyond config.train.steps={config.steps}")
        job.goodput.lap("start")
        while True:
            start = _start(job, optimizer, first, shapes, places)
            job.goodput.begin(first)
            if first == config.steps:
                return start.state["params"], True
            budget = Budget(config, start.skipped, rollbacks)
            with (
                closing(open_stream(rows, resume_data or start.data_state)) as stream,
                closing(_Attempt(job, start, budget, rows)) as attempt,
            ):
                try:
                    return attempt.run(make_step(learner, optimizer, mesh), start.state, places, stream, preemption)
                except _Spike as spike:
                    text, spike_step, resume_data = str(spike), spike.step, spike.data_state
            job.goodput.lap("step")
            # Nothing may refer to the state of the failed attempt any more: there is no memory for a second one.
            del start, attempt
            first, rollbacks = _roll_back(job, budget, spike_step, text), budget.rollbacks + 1
    finally:
        job.writer.close()


def _roll_back(job: _Job, budget: Budget, step: int, text: str) -> int:
    """Remove the checkpoints since the first skipped update; return the step to continue from.

    Raises:
      NonFiniteLoss: there is none, or there have been too many rollbacks.
    """
    config, number = job.learner.config.train, budget.rollbacks + 1
    allowed = config.on_spike == "rollback" and number <= config.max_rollbacks
    first = job.writer.go_back(budget.skipped[0]) if allowed else None
    if first is None:
        raise NonFiniteLoss(text)
    log.warning(
        "step %d: too many updates skipped; back to step %d, with the data after step %d (%d of %d)",
        *(step, first, step, number, config.max_rollbacks),
    )
    return first


def _start(job: _Job, optimizer: Any, step: int, shapes: State, places: State) -> _Start:
    """Restore a checkpoint, or make a new state for step 0."""
    learner = job.learner
    if not step:
        return _Start(0, start_new(learner, optimizer, places, job.mesh), None, {}, {})
    path = job.workdir / checkpoint.CHECKPOINTS / str(step)
    if is_first():
        log.info("continuing from step %d of %d", step, learner.config.train.steps)
        _tell_changed_schedule(learner, checkpoint.read_json(job.workdir, step, "config"), step)
    wanted = to_pure(stored(learner, shapes)), to_pure(stored(learner, places))
    state = from_pure(checkpoint.restore_tree(path / "state", *wanted), shapes)
    if learner.partial:
        base = checkpoint.read_json(job.workdir, step, "base")
        state["params"] = learner.complete(state["params"], base, path, job.mesh)
    data_state: DataState = checkpoint.restore_numpy(path / "data")
    has_skipped = (path / SKIPPED_UPDATES).is_dir()
    skipped = checkpoint.read_json(job.workdir, step, SKIPPED_UPDATES) if has_skipped else {}
    return _Start(step, state, data_state, checkpoint.read_json(job.workdir, step, "timers"), skipped)


def _tell_changed_schedule(learner: Learner, before: Mapping[str, Any], step: int) -> None:
    """Warn where another length of the run makes the learning rate jump."""
    optimizer, steps = learner.config.optimizer, learner.config.train.steps
    old = before["train"]["steps"]
    rates = [float(learning_rate_schedule(optimizer, length)(step)) for length in (old, steps)]
    if not math.isclose(*rates, rel_tol=0.01, abs_tol=1e-12):
        log.warning(
            "config.train.steps is %d and was %d: on its %s schedule the learning rate jumps from %.3g to %.3g at "
            "step %d",
            *(steps, old, optimizer.schedule, *rates, step + 1),
        )


class _Monitors:
    """Everything that observes the steps of an attempt and is closed with it; files are the first process's."""

    def __init__(self, job: _Job, first: int):
        config = job.learner.config
        self.throughput = Throughput()
        self.watchdog = Watchdog(config.train.hang_timeout, log_file(job.workdir, jax.process_index(), "stacks"))
        self.metrics: MetricsLog | None = None
        self.display: Display | None = None
        self.writers: list[Writer] = []
        if is_first():
            if config.logging.wandb:
                self.writers.append(WeightsAndBiases(job.workdir, config))
            if config.logging.tensorboard:
                self.writers.append(TensorBoard(job.workdir, first))
            self.metrics = MetricsLog(job.workdir / METRICS, first)
            self.display = Display(first, config.train.steps)
        self.profiler = Profiler(job.workdir, config.logging.profile_steps, config.logging.signal_steps)

    def start(self, job: _Job, compiled: Any) -> None:
        """Start the clocks, once the step is compiled."""
        learner, devices = job.learner, list(job.mesh.devices.flat)
        config = learner.config.logging
        work = measure_work(learner.work(), devices, config.peak_flops, learner.precise)
        if work is not None and is_first():
            log_work(work, compiled)
        self.throughput = Throughput(config.every_steps, learner.config.train.steps, work, len(devices), memory_bytes)
        job.goodput.lap("compile", "compiled")
        # Hosts do not compile equally fast, and one that waits for another is not hung.
        barrier("compiled")
        self.watchdog.start()

    def write(self, row: dict[str, Any]) -> None:
        """Write a step's numbers to all outputs."""
        step, others = row["step"], ""
        if self.metrics is not None:
            self.metrics.write(row)
        for writer in self.writers:
            writer.write(row)
        if self.throughput.ends_window(step):
            others = hosts.compare_data_wait(self.throughput.window["waiting"])
        if self.display is not None:
            self.display.step(step, row["loss"], self.throughput, others)

    def close(self) -> None:
        """Close all of them, and log the summary."""
        self.watchdog.close()
        self.profiler.close()
        for part in (self.metrics, self.display, *self.writers):
            if part is not None:
                part.close()
        if is_first() and self.throughput.seconds:
            log.info("%s", self.throughput.summary())


class _Attempt:
    """The steps from a start to the end, a signal, or too many skipped updates."""

    def __init__(self, job: _Job, start: _Start, budget: Budget, rows: list[int]):
        self._job, self._budget, self._rows = job, budget, rows
        self._config, self._losses = job.learner.config, job.learner.losses
        self._first, self._last = start.step, self._config.train.steps
        self._trained_before = start.timers.get("train_seconds", 0.0)
        self._base = job.learner.base(start.state["params"])
        self._run = identity.read_run(job.workdir)
        self._batch_sharding = sharding(job.mesh, "batch")
        self._monitors = _Monitors(job, start.step)

    def run(
        self, step_function: Any, state: State, places: State, stream: Stream, preemption: Preemption
    ) -> tuple[Params, bool]:
        hooks = self._job.hooks
        if hooks.due(self._first):
            self._evaluate(self._first, continued=True)
        batch, data_state, waited = self._draw(stream)
        started = time.perf_counter()
        # Compiled ahead of time: a batch of another shape is then an error, never a silent recompilation.
        compiled = compile_step(step_function, places, self._job.mesh).lower(state, batch).compile()
        log.info("compiled the step in %.1f s", time.perf_counter() - started)
        self._monitors.start(self._job, compiled)
        unread: _Step | None = None
        for number in range(self._first + 1, self._last + 1):
            # The order matters. The step is launched before the metrics of the one before it are read, so that the
            # device never waits for the host. A batch is drawn only after a due save, so that the data state saved with
            # step N is the one after N batches. And the rows up to N are on disk before checkpoint N exists.
            self._monitors.profiler.before(number)
            state, metrics = compiled(state, batch)
            if unread is not None:
                self._record(unread)
            unread = _Step(number, metrics, waited, data_state)
            stop, due = preemption.requested(number), hooks.due(number)
            if stop or due or number == self._last or number % self._config.checkpoint.every_steps == 0:
                self._record(unread)
                unread = None
                self._save(number, state, data_state, required=stop or number == self._last)
            if stop and number < self._last:
                return state["params"], False
            if due and number < self._last:
                self._evaluate(number)
            if number < self._last:
                batch, data_state, waited = self._draw(stream, metrics)
        return state["params"], True

    def close(self) -> None:
        self._monitors.close()

    def _evaluate(self, step: int, continued: bool = False) -> None:
        """Evaluate the checkpoint of a step in the first process, while the others wait."""
        job, monitors = self._job, self._monitors
        monitors.watchdog.pause()
        saved = job.writer.settle(step)
        job.goodput.saved()
        if is_first() and saved and (found := job.hooks.evaluate(step, continued)) is not None:
            for writer in monitors.writers:
                writer.write_evaluation(step, found)
        barrier("evaluated")
        monitors.watchdog.alive(step)
        monitors.throughput.skip()
        job.goodput.lap("evaluate", "evaluated")

    def _draw(
        self, stream: Stream, running: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, jax.Array], DataState, float]:
        """Draw the next batch; ``running``: metrics of the step that the devices may still be working on."""
        goodput = self._job.goodput
        goodput.lap("step" if running else "start")
        started = time.perf_counter()
        local, data_state = next(stream)
        waited = time.perf_counter() - started
        batch = {name: self._place(array) for name, array in local.items()}
        # Devices that still have a step to do have not waited.
        goodput.lap("data" if running is None or running["loss"].is_ready() else "step")
        return batch, data_state, waited

    def _place(self, local: np.ndarray) -> jax.Array:
        return place_rows(local, self._rows, self._config.train.batch_size, self._batch_sharding)

    def _record(self, step: _Step) -> None:
        """Read a step's metrics, and write or refuse them."""
        number, monitors = step.number, self._monitors
        values = {name: float(value) for name, value in step.metrics.items()}
        monitors.watchdog.alive(number)
        # Counts of 0 are not worth a column, and gradients are not measured at every step.
        values = {name: value for name, value in values.items() if value or name not in (*SKIPPED, UPDATE_SKIPPED)}
        values = {name: value for name, value in values.items() if not (is_measurement(name) and math.isnan(value))}
        monitors.profiler.after(number)
        timing = monitors.throughput.step(number, step.waited, values["samples"], values["tokens"])
        self._job.goodput.done(number)
        if failed := self._job.writer.failed:
            timing["failed_saves"] = float(failed)
        problem = not_finite(values, self._losses)
        if UPDATE_SKIPPED in values:
            self._count_skipped(step, problem or "loss or grad_norm is far above its median")
        elif problem:
            raise NonFiniteLoss(self._stop_message(number, problem))
        order = ("loss", *self._losses)
        monitors.write({"step": number, **{name: values[name] for name in order}, **values, "timing": timing})

    def _count_skipped(self, step: _Step, problem: str) -> None:
        config = self._config.train
        if not self._budget.spend(step.number):
            raise _Spike(self._stop_message(step.number, problem), step.number, step.data_state)
        if is_first():
            log.warning(
                "step %d: %s; the update is skipped (%d of %d allowed in %d steps)",
                *(step.number, problem, len(self._budget.skipped), config.max_skipped_updates, config.spike_window),
            )

    def _stop_message(self, step: int, problem: str) -> str:
        latest = self._job.writer.latest()
        kept = f"the last good checkpoint is step {latest}" if latest else "there is no checkpoint yet"
        return f"step {step}: {problem}; {kept}"

    def _save(self, step: int, state: State, data_state: DataState, required: bool) -> None:
        obstacle = ""
        try:
            if self._monitors.metrics is not None:
                self._monitors.metrics.sync()
        except OSError as error:
            obstacle = f"{METRICS}: {error.strerror or error}"
        timers = {"train_seconds": self._trained_before + self._monitors.throughput.seconds}
        timers |= {f"{cause}_seconds": seconds for cause, seconds in self._job.goodput.account().seconds.items()}
        config = self._config.to_dict()
        items = {"config": config, "timers": timers}
        items[identity.ITEM] = identity.of_checkpoint(self._run, step, config)
        if skipped := self._budget.to_json(step):
            items[SKIPPED_UPDATES] = skipped
        if self._base is not None:
            items["base"] = dict(self._base)
        placed = {name: self._place(array) for name, array in data_state.items()}
        pure = to_pure(stored(self._job.learner, state))
        self._job.writer.save(step, pure, placed, items, required=required, obstacle=obstacle)
        self._job.goodput.saved()
