"""Traces of the steps that were asked for, and of no others; one that fails stops nothing."""

from __future__ import annotations

import os
import signal

import pytest

from unihetero_jax.train.monitor import profiling
from unihetero_jax.train.monitor.profiling import Profiler


@pytest.fixture
def traced(monkeypatch):
    """What the profiler of JAX is told to do, by the step; it does nothing."""
    calls = []
    monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda place: calls.append(("start", place)))
    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", lambda: calls.append(("stop", None)))
    return calls


def go(profiler: Profiler, calls: list, steps: range, signal_at: int = 0) -> dict[int, list[str]]:
    """Steps as the loop makes them, each read after the next one is launched; what happened at which of them."""
    found = {}
    for step in steps:
        before = len(calls)
        if step == signal_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        profiler.before(step)
        if step > steps[0]:
            profiler.after(step - 1)
        if len(calls) > before:
            found[step] = [name for name, _ in calls[before:]]
    return found


def test_the_steps_that_the_config_names(tmp_path, traced, said):
    profiler = Profiler(tmp_path, (3, 5), 2)
    # Step 5 is done when step 6 is on its way.
    assert go(profiler, traced, range(1, 10)) == {3: ["start"], 6: ["stop"]}
    profiler.close()
    place = tmp_path / "profile" / "step-000003" / "host-00000"
    assert traced[0] == ("start", place)
    assert said == [f"profiled steps 3 to 5: tensorboard --logdir={place}"]


def test_a_run_that_begins_among_them_traces_the_rest(tmp_path, traced):
    profiler = Profiler(tmp_path, (3, 5), 2)
    assert go(profiler, traced, range(4, 8)) == {4: ["start"], 6: ["stop"]}
    profiler.close()
    profiler = Profiler(tmp_path, (3, 5), 2)
    assert go(profiler, traced, range(6, 9)) == {}
    profiler.close()


def test_a_signal_asks_for_the_next_steps(tmp_path, traced):
    before = signal.getsignal(signal.SIGUSR1)
    profiler = Profiler(tmp_path, (), 2)
    assert go(profiler, traced, range(1, 9), signal_at=4) == {4: ["start"], 6: ["stop"]}
    assert go(profiler, traced, range(9, 14), signal_at=10) == {10: ["start"], 12: ["stop"]}
    profiler.close()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_run_that_ends_before_writes_what_there_is(tmp_path, traced, said):
    profiler = Profiler(tmp_path, (2, 50), 2)
    go(profiler, traced, range(1, 4))
    profiler.close()
    assert [name for name, _ in traced] == ["start", "stop"]
    assert "profiled the steps from 2 on" in said[0]


def test_a_trace_that_cannot_be_written_is_one_line(tmp_path, traced, said, monkeypatch):
    (tmp_path / "profile").write_text("a file where a directory should be")
    profiler = Profiler(tmp_path, (2, 3), 2)
    assert go(profiler, traced, range(1, 9)) == {}
    profiler.close()
    (line,) = said
    assert line.startswith("steps 2 to 3 are not profiled: ")
    assert str(tmp_path / "profile") in line
    (tmp_path / "profile").unlink()

    def full() -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: no space\nand more")

    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", full)
    profiler = Profiler(tmp_path, (2, 3), 2)
    go(profiler, traced, range(1, 9))
    profiler.close()
    assert said[1:] == ["the trace from step 2 on cannot be written: RESOURCE_EXHAUSTED: no space"]
