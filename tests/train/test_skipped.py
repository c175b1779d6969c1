"""Records that were left out, in the metrics: their number, and by reason where there are any."""

from __future__ import annotations

import jax
import numpy as np
import runs
from packed import VOCABULARY, configure, random_batch

from unihetero_jax.data.packing.row_stream import initial_state
from unihetero_jax.data.records.invalid import FILTERED, SKIP_REASONS
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.parallel.processes import Preemption
from unihetero_jax.train.loop import train
from unihetero_jax.train.unified import UnifiedLearner


class Stream:
    """The same batch again and again; two rows leave something out at every step."""

    def __init__(self, config):
        self._batch = random_batch(config)
        self._state = initial_state(config.train.batch_size, config.data.packing_window)

    def __next__(self):
        skipped = self._batch["skipped"].copy()
        skipped[0, SKIP_REASONS.index("undecodable")] += 2
        skipped[5, SKIP_REASONS.index("undecodable")] += 1
        skipped[5, SKIP_REASONS.index("too_long")] += 1
        skipped[2, SKIP_REASONS.index(FILTERED)] += 7
        self._batch = {**self._batch, "skipped": skipped}
        return self._batch, self._state

    def close(self):
        pass


def test_metrics_count_what_was_left_out_by_reason(tmp_path):
    config = configure(**{"train.steps": 2, "logging.tensorboard": False})
    learner = UnifiedLearner(config, define(config, VOCABULARY))
    preemption = Preemption()
    try:
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        train(learner, lambda rows, state: Stream(config), tmp_path, mesh, preemption)
    finally:
        preemption.close()
    counts = [
        {name: value for name, value in row.items() if name.startswith("skipped") or name == FILTERED}
        for row in runs.metrics(tmp_path)
    ]
    assert counts == [
        {"skipped": 4, "skipped_undecodable": 3, "skipped_too_long": 1, "filtered": 7},
        {"skipped": 8, "skipped_undecodable": 6, "skipped_too_long": 2, "filtered": 14},
    ]
    assert np.isfinite([row["loss"] for row in runs.metrics(tmp_path)]).all()
