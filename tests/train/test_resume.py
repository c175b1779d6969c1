"""A run that was killed and started again is the run that was not, bit for bit.

Dropout, the noise of diffusion, accumulation, EMA and an optimizer of two rules are on.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
import runs
from matrices import matrix

from unihetero_jax.parallel.processes import PREEMPTED

STEPS = 30
SHARP = (
    "train.accumulation=2",
    "optimizer.kind=muon",
    "losses.semantic.target_gradient=ema",
    "losses.semantic.ema_decay=0.9",
    "losses.pixel.kind=diffusion",
    "losses.pixel.width=32",
    "losses.pixel.depth=1",
)


def command(workdir: Path, dataset: Path) -> list[str]:
    return runs.train_command(workdir, dataset, f"train.steps={STEPS}", *SHARP)


@pytest.fixture(scope="module", params=matrix([False, True], fast=[False]))
def optimized(request) -> bool:
    """Whether the programs are compiled as outside of the tests, which takes a minute."""
    return request.param


@pytest.fixture(scope="module")
def start(dataset, optimized) -> Callable[[Path], Popen[str]]:
    """Starts the run in a workdir, or continues it."""
    return lambda workdir: runs.start(command(workdir, dataset), optimized=optimized)


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory) -> Path:
    """The run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("resume") / "reference"
    runs.finish(start(workdir))
    assert [row["step"] for row in runs.metrics(workdir)] == list(range(1, STEPS + 1))
    return workdir


def kill(process) -> None:
    process.kill()
    process.communicate()


def test_the_runs_have_what_could_break(reference):
    names = set(runs.arrays(reference))
    assert any(name.startswith("state['ema']['understanding_tower']") for name in names)
    assert any("mu" in name for name in names)
    assert {"state['rng']", "state['step']", "data['drawn']", "data['pending']", "data['skipped']"} <= names
    assert (runs.arrays(reference)["data['pending']"] >= 0).any(), "samples were held back for later rows"


def kill_in_flight(start: Callable[[Path], Popen[str]], workdir: Path) -> None:
    """Starts a run and kills it while it saves, which leaves a half-written checkpoint."""
    for _ in range(10):
        process = start(workdir)
        assert runs.wait_until(lambda: runs.saves_in_flight(workdir), process, poll_s=0.0005)
        kill(process)
        if runs.saves_in_flight(workdir):
            return
        # It was complete before the signal came.
    raise AssertionError("no save was in flight")


def kill_at_random(arguments: list[str], workdir: Path, moments: random.Random, optimized: bool) -> None:
    process = runs.start_and_make_a_step(arguments, workdir, optimized=optimized)
    time.sleep(moments.uniform(0.0, 0.5))
    assert process.poll() is None, "finished before it could be killed: the test needs more steps"
    kill(process)


def test_killed_twice_and_stopped_it_is_the_run_that_was_not(reference, start, dataset, optimized, tmp_path):
    workdir = tmp_path / "run"
    kill_in_flight(start, workdir)
    kill_at_random(command(workdir, dataset), workdir, random.Random(0), optimized)

    before = runs.rows_written(workdir)
    process = start(workdir)
    assert runs.wait_until(lambda: runs.rows_written(workdir) > before, process)
    process.send_signal(signal.SIGTERM)
    runs.finish(process, code=PREEMPTED)
    stopped = runs.metrics(workdir)[-1]["step"]
    assert stopped < STEPS
    assert runs.checkpoint_steps(workdir)[-1] == stopped

    runs.finish(start(workdir))
    runs.assert_identical(workdir, reference)
    assert not runs.saves_in_flight(workdir), "the half-written save is removed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(reference, start, dataset, optimized, tmp_path, seed):
    moments = random.Random(seed)
    workdir = tmp_path / "run"
    for _ in range(3):
        kill_at_random(command(workdir, dataset), workdir, moments, optimized)
    runs.finish(start(workdir))
    runs.assert_identical(workdir, reference)
