"""How fast a run says it is; and the same numbers at Weights & Biases."""

from __future__ import annotations

import sys
import types

import pytest

from unihetero_jax.config import resolve
from unihetero_jax.errors import UsageError
from unihetero_jax.model.flops import Part
from unihetero_jax.train import hosts
from unihetero_jax.train.monitor import telemetry
from unihetero_jax.train.monitor.telemetry import Throughput, quantiles, scalars
from unihetero_jax.train.monitor.utilization import Peak, Work
from unihetero_jax.train.monitor.weights_and_biases import RUN_ID, WeightsAndBiases


@pytest.fixture
def clock(monkeypatch):
    """``clock.now``, which the telemetry takes for the time."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: clock.now)
    return clock


def test_rates_and_quantiles_by_hand(clock):
    work = Work([Part("all", 100.0, 2.0)], 4, Peak(10.0, "a table"))
    throughput = Throughput(5, 12, work, 4, lambda: {"host_memory_bytes": 7})
    found = {}
    for step, seconds in enumerate([1, 2, 3, 4, 10, 20, 20, 20, 20, 20, 30, 40], 1):
        clock.now += seconds
        found[step] = throughput.step(step, 0.5, 8, 400)
    assert found[2]["tokens_per_second"] == 200
    assert found[2]["tokens_per_second_per_device"] == 50
    assert found[2]["mfu"] == pytest.approx(300 / 2 / 4 / 10)
    assert "step_seconds_p50" not in found[2]
    assert "host_memory_bytes" not in found[2]
    window = {name: found[5][f"step_seconds_{name}"] for name in ("p50", "p90", "p99", "max")}
    # Between the fourth and the fifth value: 4 + 0.6 · 6 and 4 + 0.96 · 6.
    assert window == pytest.approx({"p50": 3, "p90": 7.6, "p99": 9.76, "max": 10})
    assert found[5]["host_memory_bytes"] == 7
    assert found[10]["step_seconds_p50"] == found[10]["step_seconds_max"] == 20
    # The last step ends a window that is shorter.
    assert found[12]["step_seconds_p50"] == 35
    assert throughput.window["waiting"] == pytest.approx(1 / 70)
    assert throughput.mfu == pytest.approx(300 * 12 / 190 / 40)
    assert throughput.summary().startswith("12 steps: 1 samples/s, 6 tokens/s/device, MFU 47.4%, step p50 20.000 p90 ")


def test_without_a_count_there_is_no_mfu(clock):
    throughput = Throughput()
    clock.now += 1
    assert "mfu" not in throughput.step(1, 0.0, 1, 1)
    assert throughput.mfu is None
    assert "MFU" not in throughput.summary()


def test_quantiles_of_one_value():
    assert set(quantiles([2.0]).values()) == {2.0}


def test_scalars_are_what_writers_get():
    row = {"step": 3, "loss": 1.5, "timing": {"step_seconds": 0.25, "time": 1e9}}
    assert dict(scalars(row)) == {"loss": 1.5, "timing/step_seconds": 0.25}


class FakeRun:
    def __init__(self, given):
        self.given, self.rows, self.metrics, self.finished = given, [], [], False

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place that notes the runs."""
    module = types.ModuleType("wandb")
    module.runs = []

    def init(**given):
        if module.error is not None:
            raise module.error
        module.runs.append(FakeRun(given))
        return module.runs[-1]

    module.init, module.error = init, None
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


CONFIG = resolve({"logging": {"wandb": "watches"}})


def test_a_continued_run_is_the_same_one_over_there(wandb, tmp_path):
    for step in (1, 2):
        writer = WeightsAndBiases(tmp_path, CONFIG)
        writer.write({"step": step, "loss": 0.5, "timing": {"mfu": 0.4, "time": 1.0}})
        writer.close()
    first, second = wandb.runs
    assert first.given["id"] == second.given["id"] == (tmp_path / RUN_ID).read_text().strip()
    assert first.given["resume"] == "allow"
    assert first.given["project"] == "watches"
    assert first.given["config"]["logging"]["wandb"] == "watches"
    # The step is a number like others: wandb's own counter refuses steps that are done again.
    assert first.metrics == [("*", "step")]
    assert second.rows == [{"step": 2, "loss": 0.5, "timing/mfu": 0.4}]
    assert first.finished


def test_a_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"wandb='watches': the package wandb is not installed: pip install"):
        WeightsAndBiases(tmp_path, CONFIG)
    assert not (tmp_path / RUN_ID).exists()


def test_a_service_that_does_not_begin_is_one_line(wandb, tmp_path):
    wandb.error = RuntimeError("api_key not configured\n(no-tty)")
    with pytest.raises(UsageError, match=r"cannot start: api_key not configured \(no-tty\); log in, or set"):
        WeightsAndBiases(tmp_path, CONFIG)


def test_the_host_that_waits_longest_is_named(monkeypatch):
    told = {}
    monkeypatch.setattr(hosts.processes, "publish", lambda topic, text: told.update({0: text}))
    monkeypatch.setattr(hosts.processes, "published", lambda topic: told)
    monkeypatch.setattr(hosts.processes, "_names", ["a", "b", "c"])
    assert hosts.compare_data_wait(0.25) == ""
    told.update({1: "0.1", 2: "0.5"})
    assert hosts.compare_data_wait(0.25) == ", host 2 (c) 50.0%"
    monkeypatch.setattr(hosts.processes, "is_first", lambda: False)
    assert hosts.compare_data_wait(0.25) == ""


@pytest.mark.parametrize(
    ("logging", "complaint"),
    [
        ({"profile_steps": (5,)}, r"profile_steps=\(5,\): expected the first and the last step to trace, as in 10,12"),
        ({"profile_steps": (5, 4)}, "profile_steps"),
        ({"profile_steps": (0, 4)}, "profile_steps"),
        ({"signal_steps": 0}, "signal_steps=0: expected a value above 0"),
        ({"peak_flops": -1.0}, "peak_flops=-1.0: expected 0 or more"),
    ],
)
def test_settings_that_cannot_be(logging, complaint):
    with pytest.raises(UsageError, match=f"config.logging.{complaint}"):
        resolve({"logging": logging})
