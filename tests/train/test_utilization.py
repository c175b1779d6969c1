"""MFU against a hand count, over a peak that says where it comes from; XLA's count with loops as often as they run."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import pytest
from packed import VOCABULARY, configure

from unihetero_jax.model.build import define
from unihetero_jax.model.flops import Part, step_parts
from unihetero_jax.parallel.chips import CHIPS, chip_of
from unihetero_jax.train.monitor import utilization
from unihetero_jax.train.monitor.utilization import (
    Peak,
    Work,
    find_peak,
    log_work,
    measured_rate,
    memory_bytes,
    xla_flops,
)
from unihetero_jax.train.unified import UnifiedLearner


def test_mfu_by_hand():
    # 6 TFLOP forward and twice that backward, 4 TFLOP forward alone, in 0.5 s on 4 devices of 20 TFLOP/s.
    work = Work([Part("trained", 6e12, 2.0), Part("frozen", 4e12, 0.0)], 4, Peak(20e12, "a table"))
    assert work.flops == 22e12
    assert work.utilization(0.5) == pytest.approx(44 / 80)


def test_the_learner_counts_its_own_step():
    config = configure()
    learner = UnifiedLearner(config, define(config, VOCABULARY))
    parts = {part.name: part for part in learner.work()}
    assert parts == {part.name: part for part in step_parts(config, VOCABULARY)}
    tokens, decoder = config.train.batch_size * config.data.seq_len, config.model.decoder
    # Its table has whole hundreds of 128 rows.
    assert parts["text head"].model == 3 * tokens * 2 * decoder.width * 128


def device(kind: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(device_kind=kind, process_index=0)


def test_the_peak_is_given_published_or_measured():
    assert find_peak([device("TPU v5p")], 1e12, False) == Peak(1e12, "config.logging.peak_flops")
    assert find_peak([device("TPU v5p")], 0.0, False) == Peak(459e12, "published bf16 peak of v5p")
    assert find_peak([device("NVIDIA H100 80GB HBM3")], 0.0, True).flops == 989e12
    found = find_peak(jax.devices()[:2], 0.0, True)
    assert found.source == "measured float32 product; no published peak for 'cpu'"
    assert 1e8 < found.flops < 1e13


def test_a_card_of_the_same_name_that_is_slower_has_no_published_peak():
    assert chip_of("TPU v5 lite") == ("v5e", CHIPS["v5e"])
    assert chip_of("NVIDIA H100 PCIe") is None


def test_devices_that_share_cores_share_their_rate(monkeypatch):
    monkeypatch.setattr(utilization, "_PROBE_FLOPS", 2e8)
    alone, four = (measured_rate(jax.devices()[:count], jnp.dtype("float32")) for count in (1, 4))
    assert four < alone


def test_xla_counts_a_loop_as_often_as_it_runs():
    def repeated(x):
        return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=5)[0]

    x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    whole, once = xla_flops(jax.jit(repeated).lower(x).compile())
    assert whole == pytest.approx(5 * 2 * 32**3, rel=0.02)
    assert once == pytest.approx(2 * 32**3, rel=0.02)


def test_a_backend_that_does_not_count_is_no_failure(said):

    def as_text() -> str:
        raise RuntimeError("UNIMPLEMENTED: several operands")

    compiled = types.SimpleNamespace(cost_analysis=lambda: {"flops": 1.0}, as_text=as_text)
    assert xla_flops(compiled) is None
    log_work(Work([Part("all", 1e6, 2.0)], 2, Peak(1e6, "a table")), compiled)
    text = "\n".join(said)
    assert "a step needs 3e+06 FLOPs (Σ over parts of forward · (1 + backward)" in text
    assert "2 × 1e+06 FLOP/s (a table)" in text
    assert "this backend has no count of XLA's" in text


def test_memory_of_the_fullest_device_or_of_the_process(monkeypatch):
    assert memory_bytes()["host_memory_bytes"] > 2**20
    stats = [{"peak_bytes_in_use": 5, "bytes_limit": 10}, {"peak_bytes_in_use": 7, "bytes_limit": 10}]
    devices = [types.SimpleNamespace(memory_stats=lambda stat=stat: stat) for stat in stats]
    monkeypatch.setattr(utilization.jax, "local_devices", lambda: devices)
    assert memory_bytes() == {"device_memory_bytes": 7, "device_memory_limit_bytes": 10}
