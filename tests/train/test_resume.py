"""A run that was killed and started again is the run that was not, bit for bit (dropout, accumulation and EMA on)."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import runs

from unihetero_jax.parallel.processes import PREEMPTED

pytestmark = pytest.mark.slow

STEPS = 30
SHARP = ("train.accumulation=2", "losses.semantic.target_gradient=ema", "losses.semantic.ema_decay=0.9")


def command(workdir: Path, dataset: Path) -> list[str]:
    return runs.train_command(workdir, dataset, f"train.steps={STEPS}", *SHARP)


@pytest.fixture(scope="module")
def reference(dataset, tmp_path_factory) -> Path:
    """The run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("resume") / "reference"
    runs.finish(start(workdir, dataset))
    assert [row["step"] for row in runs.metrics(workdir)] == list(range(1, STEPS + 1))
    return workdir


def start(workdir: Path, dataset: Path):
    return runs.start(command(workdir, dataset), optimized=True)


def kill(process) -> None:
    process.kill()
    process.communicate()


def test_the_runs_have_what_could_break(reference):
    names = set(runs.arrays(reference))
    assert any(name.startswith("state['ema']['understanding_tower']") for name in names)
    assert any("mu" in name for name in names)
    assert {"state['rng']", "state['step']", "data['drawn']", "data['pending']", "data['skipped']"} <= names
    assert (runs.arrays(reference)["data['pending']"] >= 0).any(), "samples were held back for later rows"


def test_killed_at_random_moments(reference, dataset, tmp_path):
    moments = random.Random(0)
    workdir = tmp_path / "run"
    for _ in range(3):
        process = runs.start_and_make_a_step(command(workdir, dataset), workdir)
        time.sleep(moments.uniform(0.0, 0.5))
        assert process.poll() is None, "finished before it could be killed: the test needs more steps"
        kill(process)
    runs.finish(start(workdir, dataset))
    runs.assert_identical(workdir, reference)


def test_killed_while_a_save_is_in_flight(reference, dataset, tmp_path):
    workdir = tmp_path / "run"
    for _ in range(10):
        process = start(workdir, dataset)
        assert runs.wait_until(lambda: runs.saves_in_flight(workdir), process, poll_s=0.0005)
        kill(process)
        if runs.saves_in_flight(workdir):
            break  # else it was complete before the signal came
    half = runs.saves_in_flight(workdir)
    assert half
    runs.finish(start(workdir, dataset))
    runs.assert_identical(workdir, reference)
    assert not runs.saves_in_flight(workdir), "the half-written save is removed"


def test_sigterm_saves_and_exits_with_75(reference, dataset, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, dataset)
    assert runs.wait_until(lambda: runs.rows_written(workdir) >= 2, process)
    process.send_signal(signal.SIGTERM)
    runs.finish(process, code=PREEMPTED)
    stopped = runs.metrics(workdir)[-1]["step"]
    assert stopped < STEPS
    assert runs.checkpoint_steps(workdir)[-1] == stopped
    runs.finish(start(workdir, dataset))
    runs.assert_identical(workdir, reference)
