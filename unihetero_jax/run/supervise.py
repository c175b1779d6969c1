"""What surrounds every training: processes, the claim on the workdir, clocks and logs, signals, and the exit code."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from unihetero_jax.config import RunConfig
from unihetero_jax.data.packing.rows_from_workers import WorkerLost
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel import processes
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.parallel.startup import cache_compilations, hint_at_huge_pages, set_up_logging
from unihetero_jax.run.lock import WorkdirLock
from unihetero_jax.run.workdir import claim, refuse_datasets
from unihetero_jax.train import hosts
from unihetero_jax.train.hooks import NONE, Hooks
from unihetero_jax.train.learner import Learner
from unihetero_jax.train.loop import NonFiniteLoss, OpenStream, train
from unihetero_jax.train.monitor.goodput import Goodput, format_account
from unihetero_jax.train.monitor.host_log import HostLog

log = logging.getLogger(__name__)

NON_FINITE = 1
USAGE = 2

# XLA's errors that another start would meet again.
_NOT_TRANSIENT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


@dataclass(frozen=True)
class Job:
    """A training to carry out.

    Attributes:
      config: the run's configuration.
      workdir: holds config, tokenizer, metrics and checkpoints; made if it is not there.
      assemble: prepares the dataset and the workdir; returns the learner, and a function that opens its batches.
      finish: called in the first process when training is complete.
      accept_changed_imports: continue with components of the user's that have changed since the run began.
      hooks: what is called during training; the claim on the workdir is looked at besides.
    """

    config: RunConfig
    workdir: Path
    assemble: Callable[[], tuple[Learner, OpenStream]]
    finish: Callable[[], None]
    accept_changed_imports: bool = False
    hooks: Hooks = NONE


def carry_out(job: Job) -> int:
    """Train in a workdir, or continue what is there.

    Returns:
      The exit code: 0 when training is complete; 75 when a signal stopped it, or another host or a data worker was
      lost, and the same command continues it; 1 when the loss was not finite.

    Raises:
      UsageError: the workdir belongs to another run or cannot be written, or dataset or mesh do not fit.
    """
    set_up_logging()
    try:
        processes.start()
    except processes.HostMissing as error:
        _print_error(error)
        return processes.PREEMPTED
    try:
        return _carry_out_here(job)
    except UsageError as error:
        if jax.process_count() == 1:
            raise
        _print_error(error)
        # The other hosts may be well, and would wait for this one.
        processes.abandon(USAGE)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or any(word in str(error) for word in _NOT_TRANSIENT):
            raise
        log.exception("a step failed, as it does when another host is lost; leaving, to be started again")
        processes.abandon(processes.PREEMPTED)


def _carry_out_here(job: Job) -> int:
    preemption = processes.Preemption()
    host_log = goodput = lock = None
    try:
        hosts.check_alike(job.config)
        if processes.is_first():
            refuse_datasets(job.workdir)
            lock = WorkdirLock.acquire(job.workdir)
        claim(job.config, job.workdir, job.accept_changed_imports)
        host_log = HostLog(job.workdir, jax.process_index())
        goodput = Goodput(job.workdir if processes.is_first() else None)
        hooks = job.hooks if lock is None else replace(job.hooks, before_commit=lock.check)
        return _train(job, preemption, host_log, goodput, hooks)
    except processes.HostMissing as error:
        _print_error(error)
        processes.abandon(processes.PREEMPTED)
    except WorkerLost as error:
        _print_error(f"{error}; run the same command again to continue")
        if jax.process_count() > 1:
            processes.abandon(processes.PREEMPTED)  # the other hosts wait for this one
        return processes.PREEMPTED
    except NonFiniteLoss as error:
        _print_error(error)
        return NON_FINITE
    except OSError as error:
        # A write that fails (a full disk) names no file, unlike an open that fails.
        raise UsageError(
            f"{error.filename or job.workdir}: cannot be read or written: {error.strerror or error}"
        ) from error
    finally:
        preemption.close()
        if goodput is not None:
            goodput.close("failed")
        if host_log is not None:
            host_log.close()
        if lock is not None:
            lock.close()


def _train(
    job: Job,
    preemption: processes.Preemption,
    host_log: HostLog,
    goodput: Goodput,
    hooks: Hooks,
) -> int:
    started = time.perf_counter()
    hosts.log_hosts(job.workdir)
    cache_compilations(job.workdir)
    learner, open_stream = job.assemble()
    mesh = make_mesh(job.config.mesh)
    if mesh.devices.flat[0].platform == "cpu":
        hint_at_huge_pages()
    log.info("%s, mesh %s", _describe(learner), " × ".join(f"{axis}={size}" for axis, size in mesh.shape.items()))
    preemption.defer(True)
    _, complete = train(learner, open_stream, job.workdir, mesh, preemption, goodput, hooks)
    goodput.close("complete" if complete else "stopped")
    preemption.defer(False)
    hosts.log_summary(host_log)
    if processes.is_first():
        log.info("%s", format_account(goodput.account()))
    if not complete:
        log.info("stopped by a signal and saved; run the same command again to continue")
        return processes.PREEMPTED
    log.info("trained in %.0f s (this start)", time.perf_counter() - started)
    processes.barrier("trained")
    if processes.is_first():
        job.finish()
    processes.barrier("finished")
    return 0


def _describe(learner: Learner) -> str:
    devices, shapes = jax.devices(), learner.model.shapes()
    count, trained = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (shapes, learner.split(shapes)[0]))
    here = f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"
    return f"{here}, {count:,}{'' if trained == count else f' ({trained:,} trained)'} parameters"


def _print_error(error: object) -> None:
    print(f"unihetero: error: {error}", file=sys.stderr)
