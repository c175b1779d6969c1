"""A run goes on with other processes, devices or threads: the same rows in the same order, only rounding differs."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pytest
import runs

from unihetero_jax.parallel.processes import PREEMPTED

EXACT = ("samples", "tokens", "packed", "skipped", "step", "learning_rate")


@pytest.fixture(scope="module")
def reference(dataset, tmp_path_factory) -> Path:
    """15 steps on one process with one device."""
    workdir = tmp_path_factory.mktemp("elastic") / "reference"
    runs.finish(runs.start(runs.train_command(workdir, dataset, *OPTIONS, "train.steps=15")))
    return workdir


# A larger epsilon keeps Adam from turning the rounding of a gradient near zero into a step of full size. The learning
# rate is constant because a schedule to the end would differ when `train.steps` grows from leg to leg.
OPTIONS = ("optimizer.schedule=constant", "optimizer.epsilon=1e-3", "checkpoint.keep_latest=3")


def assert_same_but_for_rounding(workdir: Path, reference: Path) -> None:
    rows, expected = runs.metrics(workdir), runs.metrics(reference)
    assert [{name: row[name] for name in EXACT} for row in rows] == [
        {name: row[name] for name in EXACT} for row in expected
    ]
    # float32 has 6e-8 of relative rounding; sums over devices take another order, and 15 steps of training carry the
    # difference on. A wrong row, weight or dropout mask is off by 1e-2 and more.
    for name in ("loss", "text", "semantic", "pixel", "grad_norm"):
        np.testing.assert_allclose([row[name] for row in rows], [row[name] for row in expected], rtol=2e-4)
    step = runs.checkpoint_steps(reference)[-1]
    assert runs.differing(runs.arrays(workdir, step, ["data"]), runs.arrays(reference, step, ["data"])) == []
    found, wanted = runs.arrays(workdir, step, ["state"]), runs.arrays(reference, step, ["state"])
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        scale = np.max(np.abs(array.astype(np.float64)), initial=1e-6)
        assert np.max(np.abs(found[name].astype(np.float64) - array), initial=0.0) <= 1e-3 * scale, name


def test_one_two_one_processes(reference, dataset, tmp_path):
    """Of which the two are stopped by one signal, at one step."""
    workdir = tmp_path / "run"
    runs.finish(runs.start(runs.train_command(workdir, dataset, *OPTIONS, "train.steps=5")))
    rest = runs.train_command(workdir, dataset, *OPTIONS, "train.steps=15")
    process = runs.launch(2, 1, [*rest, "--config.logging.profile_steps=6,7", "--config.logging.every_steps=2"])
    assert runs.wait_until(lambda: runs.rows_written(workdir) >= 7, process)
    process.send_signal(signal.SIGTERM)
    output = runs.finish(process, code=PREEMPTED)
    stopped = runs.metrics(workdir)[-1]["step"]
    assert 7 <= stopped < 15
    assert runs.checkpoint_steps(workdir)[-1] == stopped
    assert "mesh slice=1 × fsdp=2" in output
    assert re.search(r"data wait \d+\.\d% of the last steps; the slowest is host [01] \(", output)
    traces = [path.relative_to(workdir).parts for path in workdir.rglob("*.xplane.pb")]
    assert {trace[:3] for trace in traces} == {("profile", "step-000006", f"host-0000{number}") for number in range(2)}
    runs.finish(runs.start(rest))
    assert_same_but_for_rounding(workdir, reference)


@pytest.mark.slow
def test_workers_threads_and_read_ahead_change_nothing(reference, dataset, tmp_path):
    workdir = tmp_path / "run"
    runs.finish(
        runs.start(
            runs.train_command(workdir, dataset, *OPTIONS, "train.steps=8", "data.threads=1", "data.read_ahead=1")
        )
    )
    runs.finish(
        runs.start(runs.train_command(workdir, dataset, *OPTIONS, "train.steps=15", "data.workers=2", "data.threads=5"))
    )
    runs.assert_identical(workdir, reference)
