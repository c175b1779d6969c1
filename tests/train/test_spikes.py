"""A step that would do harm changes nothing, is counted, and too many of them stop the run or take it back."""

from __future__ import annotations

import functools
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import packed
import pytest
import runs
from matrices import matrix
from packed import VOCABULARY, configure, random_batch

from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import TrainConfig, refused_on_resume
from unihetero_jax.config.checks import validate
from unihetero_jax.data.packing.row_stream import initial_state
from unihetero_jax.errors import UsageError
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.parallel.processes import Preemption
from unihetero_jax.train import spikes
from unihetero_jax.train.loop import NonFiniteLoss, train
from unihetero_jax.train.optimizers.base import make_optimizer
from unihetero_jax.train.unified import UnifiedLearner

EMA = {"losses.semantic.target_gradient": "ema", "losses.semantic.ema_decay": 0.9}
# The history is too short to judge by, and its place in the state is checkpointed all the same.
RUN = {
    **EMA,
    "model.decoder.layers": 1,
    "train.steps": 10,
    "train.max_skipped_updates": 1,
    "train.spike_norm": 1e6,
    "checkpoint.every_steps": 2,
    "checkpoint.keep_latest": 9,
    "logging.tensorboard": False,
}


class Stream:
    """Batch n, which follows the state after n batches; what is learned of some of them is no number."""

    def __init__(self, config, bad, saved):
        self._config, self._bad = config, bad
        self._state = saved or initial_state(config.train.batch_size, config.data.packing_window)

    def __next__(self):
        drawn = self._state["drawn"] + 1
        number = int(drawn.flat[0])
        self._state = {**self._state, "drawn": drawn}
        batch = random_batch(self._config, seed=number)
        batch["segment"][:, -number:] = 0  # so that a row of the metrics tells which batch it saw
        if number in self._bad:
            batch["text_weight"][3, 2] = np.nan
        return batch, self._state

    def close(self):
        pass


def run(workdir: Path, bad=(), **changes):
    config = configure(**{**RUN, **changes})
    learner = UnifiedLearner(config, define(config, VOCABULARY))
    workdir.mkdir(exist_ok=True)
    preemption = Preemption()
    try:
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        return train(learner, lambda rows, saved: Stream(config, bad, saved), workdir, mesh, preemption)
    finally:
        preemption.close()


def batches(workdir: Path) -> list[int]:
    """Which batch each row of the metrics is about."""
    rows, slots = 8, configure().data.seq_len
    return [slots - round(row["tokens"] / rows) for row in runs.metrics(workdir)]


def fall_back(workdir: Path, step: int) -> None:
    for number in runs.checkpoint_steps(workdir):
        if number > step:
            shutil.rmtree(workdir / "checkpoints" / str(number))


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unihetero_jax"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@functools.cache
def one_step(split, spoil):
    config = configure(**EMA, **{"train.spike_norm": 10.0, "train.spike_window": 4})
    optimizer = make_optimizer(config.optimizer, 10)
    step, before, batch = packed.compiled_step(config, optimizer, split)
    if spoil:
        weight = np.asarray(batch["text_weight"]).copy()
        weight[3, 2] = np.nan
        batch["text_weight"] = jax.device_put(weight, batch["text_weight"].sharding)
    first = jax.tree.map(np.asarray, before)
    after, metrics = step(before, batch)
    return first, jax.tree.map(np.asarray, after), {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("split", matrix([((1, 1, 1, 1),), ((1, 4, 1, 2),)], fast=[(1, 4, 1, 2)]), ids=str)
def test_what_is_not_finite_changes_nothing_but_step_and_schedule(split):
    before, after, metrics = one_step(split, True)
    assert metrics["update_skipped"] == 1
    assert np.isnan(metrics["grad_norm"])
    changed = [
        jax.tree_util.keystr(path)
        for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
        if old.tobytes() != new.tobytes()
    ]
    assert len(changed) == 2, changed
    assert "['step']" in changed
    assert [int(value) for _, value in optax.tree.get_all_with_path(after["opt_state"], "count")] == [0, 1]
    _, healthy, metrics = one_step(split, False)
    assert metrics["update_skipped"] == 0
    assert int(healthy["history"]["count"]) == 1
    moved = jax.tree.map(lambda old, new: old.tobytes() != new.tobytes(), before["params"], healthy["params"])
    assert all(jax.tree.leaves(moved))


def test_a_spike_is_what_is_far_above_the_median_of_a_full_window():
    config = TrainConfig(spike_window=3, spike_norm=5.0, spike_loss=2.0)
    now = spikes.initial(config)
    seen = []
    for loss, norm in ((9, 1), (1, 50), (1, 2), (1, 9.9), (1, 10.1), (2.1, 1), (2, 1), (float("inf"), 1), (1, 1)):
        good, now = spikes.judge(config, now, [], np.float32(loss), np.float32(norm))
        seen.append(bool(good))
    # Medians: of the norms 1, 50, 2 it is 2; of 9.9, 50, 2 it is 9.9; the losses' is 1 throughout.
    assert seen == [True, True, True, True, True, False, True, False, True]
    assert int(now["history"]["count"]) == 7
    assert spikes.initial(TrainConfig()) == {}


def test_a_few_are_left_out_and_said(tmp_path, said):
    run(tmp_path / "run", bad=(4,), **{"checkpoint.every_steps": 1})
    rows = runs.metrics(tmp_path / "run")
    assert [row.get("update_skipped") for row in rows] == [None] * 3 + [1.0] + [None] * 6
    assert rows[3]["grad_norm"] is None
    assert batches(tmp_path / "run") == list(range(1, 11))
    assert said() == ["step 4: grad_norm is nan; the update is skipped (1 of 1 allowed in 100 steps)"]
    third, fourth, fifth = (runs.arrays(tmp_path / "run", step) for step in (3, 4, 5))
    changed = runs.differing(third, fourth)
    assert {name.partition("[")[0] for name in changed} == {"state", "data"}
    assert len([name for name in changed if name.startswith("state")]) == 2
    assert len(runs.differing(fourth, fifth)) > 20


def test_more_than_the_budget_stop_the_run(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"^step 6: grad_norm is nan; the last good checkpoint is step 4$"):
        run(tmp_path / "run", bad=(4, 6), **{"train.steps": 12})
    assert runs.metrics(tmp_path / "run")[-1]["step"] == 5
    # The count goes on where it was.
    with pytest.raises(NonFiniteLoss, match=r"^step 6: "):
        run(tmp_path / "run", bad=(6,), **{"train.steps": 12})
    run(tmp_path / "run", bad=(6,), **{"train.steps": 12, "train.max_skipped_updates": 2})
    assert len(runs.metrics(tmp_path / "run")) == 12


def test_nothing_to_go_back_to_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"^step 2: grad_norm is nan; there is no checkpoint yet$"):
        run(tmp_path / "run", bad=(1, 2), **{"train.on_spike": "rollback"})


@pytest.fixture(scope="module")
def gone_back(tmp_path_factory) -> Path:
    """Batches 5 and 7 are bad: at step 7 it goes back to step 4, and on with batch 8; 6 was saved in between."""
    workdir = tmp_path_factory.mktemp("spikes") / "run"
    run(workdir, bad=(5, 7), **{"train.on_spike": "rollback"})
    return workdir


def test_it_goes_back_before_them_and_on_behind_them(gone_back):
    assert batches(gone_back) == [1, 2, 3, 4, 8, 9, 10, 11, 12, 13]
    assert [row["step"] for row in runs.metrics(gone_back)] == list(range(1, 11))
    assert not any("update_skipped" in row for row in runs.metrics(gone_back))
    assert runs.checkpoint_steps(gone_back) == [2, 4, 6, 8, 10]
    assert checkpoint.read_json(gone_back, 10, "skipped_updates") == {"skipped": [], "rollbacks": 1}
    assert not (gone_back / "checkpoints" / "4" / "skipped_updates").exists()


@pytest.mark.parametrize("step", matrix([2, 4, 6], fast=[4]))
def test_killed_before_or_after_it_went_back_it_ends_alike(gone_back, tmp_path, step):
    shutil.copytree(gone_back, tmp_path / "copy")
    fall_back(tmp_path / "copy", step)
    run(tmp_path / "copy", bad=(5, 7), **{"train.on_spike": "rollback"})
    runs.assert_identical(tmp_path / "copy", gone_back)


def test_it_goes_back_only_so_often(tmp_path, said):
    bad = (5, 6, 7, 8)
    with pytest.raises(NonFiniteLoss, match=r"^step 6: grad_norm is nan; the last good checkpoint is step 4$"):
        run(tmp_path / "run", bad, **{"train.on_spike": "rollback", "train.max_rollbacks": 1})
    assert "step 6: too many updates skipped; back to step 4, with the data after step 6 (1 of 1)" in said()


def test_factors_that_leave_everything_out_are_refused():
    with pytest.raises(UsageError, match=r"config\.train\.spike_norm=0\.5: expected a factor above 1, or 0 \(off\)"):
        validate(configure(**{"train.spike_norm": 0.5}))


def test_runs_from_before_there_were_spikes_go_on():
    new = configure().to_dict()
    old = {**new, "train": {name: value for name, value in new["train"].items() if "spike" not in name}}
    assert refused_on_resume(old, new) == []
    assert refused_on_resume(old, configure(**{"train.spike_norm": 9.0}).to_dict()) == ["train.spike_norm"]
