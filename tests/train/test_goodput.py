"""Where the time of a run goes, over all of its starts; nothing of it is counted twice or forgotten."""

from __future__ import annotations

import itertools
import json
import signal
import time
import types

import pytest
import runs

from unihetero_jax.train.monitor import goodput
from unihetero_jax.train.monitor.goodput import ALL_CAUSES, Account, Goodput, account, format_account, read_events


def line(event: str, number: int, at: float, done: int, **seconds: float) -> dict:
    return {"event": event, "start": number, "time": at, "step": done, "seconds": seconds}


# The first start is killed at step 7, after checkpoint 5; the second is stopped at 8 and saves; the third finishes.
THREE_STARTS = [
    line("start", 1, 1000.0, 0),
    line("begin", 1, 1010.0, 0, start=10),
    line("compiled", 1, 1031.0, 0, start=10, data=1, compile=20),
    line("steps", 1, 1040.0, 4, start=10, data=2, compile=20, step=8),
    line("save", 1, 1043.0, 5, start=10, data=2, compile=20, step=10, save=1),
    line("steps", 1, 1050.0, 7, start=10, data=3, compile=20, step=15, save=2),
    line("start", 2, 1060.0, 0),
    line("begin", 2, 1065.0, 5, start=2, restore=3),
    line("save", 2, 1080.0, 8, start=2, restore=3, data=1, step=8, save=6),
    line("stopped", 2, 1081.0, 8, start=2, restore=3, data=1, step=8, save=7),
    line("start", 3, 1081.5, 0),
    line("begin", 3, 1082.5, 8, start=1),
    line("complete", 3, 1084.5, 9, start=1, step=2),
]


def test_work_behind_the_restored_checkpoint_is_lost():
    found = account(THREE_STARTS)
    assert found.starts == 3
    assert found.step == 9
    assert found.lost_steps == 2
    assert found.seconds == {
        # Of the first start's 15 seconds of steps, 1 of waiting and 1 of saving, 5 + 1 + 1 came after checkpoint 5.
        "step": 15 + 8 + 2 - 5,
        "data": 3 + 1 - 1,
        "save": 2 + 7 - 1,
        "evaluate": 0,
        "lost": 7,
        "start": 13,
        "restore": 3,
        "compile": 20,
        "down": 10 + 0.5,
    }
    assert found.wall == pytest.approx(1084.5 - 1000)
    assert found.goodput == pytest.approx(20 / 84.5)


def test_a_run_that_begins_anew_has_lost_all_steps():
    found = account([*THREE_STARTS[:6], line("start", 2, 1050.0, 0), line("begin", 2, 1051.0, 0, start=1)])
    assert found.lost_steps == 7
    # Waiting for the first batch is a part of every start, and is not lost.
    assert found.seconds["lost"] == 15 + (3 - 1) + 2
    assert found.seconds["step"] == found.goodput == 0


def test_an_earlier_checkpoint_than_the_last_one_loses_more():
    lines = [line("save", 1, 2.0, 1, step=1), line("save", 1, 4.0, 2, step=3), line("start", 2, 5.0, 0)]
    found = account([line("start", 1, 1.0, 0), *lines, line("begin", 2, 6.0, 1, restore=1)])
    assert (found.seconds["lost"], found.seconds["step"], found.lost_steps) == (2, 1, 1)


def test_nothing_is_nothing(tmp_path):
    assert read_events(tmp_path) == []
    assert account([]) == Account()
    assert Account().goodput == 0


@pytest.fixture
def clock(monkeypatch):
    """``clock.sleep`` moves both of the clocks that goodput reads."""
    fake = types.SimpleNamespace(now=1000.0)
    fake.time = fake.monotonic = lambda: fake.now
    fake.sleep = lambda seconds: setattr(fake, "now", fake.now + seconds)
    monkeypatch.setattr(goodput, "time", fake)
    return fake


def test_every_moment_belongs_to_one_cause(tmp_path, clock):
    found = Goodput(tmp_path, 995.0)
    for cause, seconds in (("start", 1), ("compile", 20), ("data", 2)):
        clock.sleep(seconds)
        found.lap(cause)
    clock.sleep(3)
    found.begin(0)
    for step in range(1, 101):
        clock.sleep(0.1)
        found.done(step)
    clock.sleep(4)
    found.saved()
    clock.sleep(0.5)
    found.close("complete")
    found.close("failed")
    spent = account(read_events(tmp_path))
    assert spent.last["event"] == "complete"
    assert {cause: seconds for cause, seconds in spent.seconds.items() if seconds} == pytest.approx(
        {"start": 5 + 1 + 3, "compile": 20, "data": 2, "step": 10, "save": 4.5}
    )
    assert spent.wall == pytest.approx(clock.now - 995)
    assert found.account().seconds == pytest.approx(spent.seconds)
    # Not a line a step, but so many that what a killed process leaves unsaid is a hundredth of its time.
    steps = [event["step"] for event in read_events(tmp_path) if event["event"] == "steps"]
    assert 15 <= len(steps) <= 35
    assert max(after - before for before, after in itertools.pairwise(steps)) <= 5


def test_a_torn_line_and_a_second_start(tmp_path, clock):
    first = Goodput(tmp_path, 990.0)
    first.begin(0)
    with (tmp_path / goodput.EVENTS).open("a") as file:
        file.write('{"event": "steps", "start": 1, "ti')
    clock.sleep(2)
    second = Goodput(tmp_path, 995.0)
    second.begin(0)
    events = read_events(tmp_path)
    assert [(event["event"], event["start"]) for event in events] == [
        ("start", 1),
        ("begin", 1),
        ("start", 2),
        ("begin", 2),
    ]
    # The second cannot have begun before the first one's last line.
    assert account(events).seconds["start"] == account(events).wall == 10 + 2


def test_what_cannot_be_written_is_one_line_and_no_more(tmp_path, said):
    (tmp_path / goodput.EVENTS).mkdir()
    clock = Goodput(tmp_path)
    clock.begin(0)
    clock.done(1)
    clock.close("complete")
    assert said == [f"{tmp_path / goodput.EVENTS}: cannot be written, so goodput is not: Is a directory"]
    assert clock.account().step == 1


def test_format_account():
    text = format_account(account(THREE_STARTS))
    assert text.startswith("goodput 23.7% of 84.5 s: step 20.0 s, start 13.0 s, ")
    assert "lost 7.0 s, down 10.5 s; 3 starts, 2 steps done again" in text
    assert goodput.format_duration(600) == "10.0 min"
    assert goodput.format_duration(36000) == "10.0 h"


@pytest.mark.slow
def test_a_run_that_is_killed_and_continued_has_lost_work_and_adds_up(dataset, tmp_path):
    workdir = tmp_path / "run"
    command = runs.train_command(workdir, dataset, "train.steps=60", "checkpoint.every_steps=20")

    def known_behind_a_checkpoint() -> bool:
        stored = (workdir / "checkpoints/20/_CHECKPOINT_METADATA").exists()
        return stored and read_events(workdir)[-1]["step"] > 22

    began = time.time()
    process = runs.start(command)
    assert runs.wait_until(known_behind_a_checkpoint, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done, kept = runs.rows_written(workdir), runs.checkpoint_steps(workdir)[-1]
    output = runs.finish(runs.start(command))
    wall = time.time() - began
    found = account(read_events(workdir))
    assert found.starts == 2
    assert 0 < found.seconds["lost"] < found.seconds["step"]
    # The killed start is known to a hundredth of its time, or to a step.
    assert 1 <= found.lost_steps <= done - kept + 1
    assert found.wall == pytest.approx(wall, rel=0.05)
    assert all(found.seconds[cause] > 0 for cause in ALL_CAUSES if cause != "evaluate")
    assert "2 starts, " in output
    timers = json.loads((workdir / "checkpoints/60/timers/metadata").read_text())
    assert timers["lost_seconds"] == pytest.approx(found.seconds["lost"])
    assert 0 < timers["step_seconds"] <= found.seconds["step"] + 1e-3
