"""The local launcher, with a stand-in for ``unihetero`` that says what it sees and dies as told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import LAUNCHER

STAND_IN = """
import os, signal, sys, time

number = os.environ["JAX_PROCESS_ID"]
print("out", os.environ["JAX_NUM_PROCESSES"], os.environ["JAX_COORDINATOR_ADDRESS"], *sys.argv[1:], flush=True)
print("flags", os.environ.get("XLA_FLAGS"), file=sys.stderr, flush=True)
print("devices", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
open(f"pid{number}", "w").write(str(os.getpid()))

def plan(name):
    return next((text.partition("=")[2] for text in sys.argv if text.startswith(f"{name}{number}=")), None)

def note(received, frame):
    print("got", signal.Signals(received).name, flush=True)
    open(f"signal{number}", "a").write(signal.Signals(received).name)
    if plan("stubborn") is None:
        sys.exit(75)

signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
open(f"starts{number}", "a").write("x")
if plan("once") is not None and len(open(f"starts{number}").read()) == 1:
    sys.exit(int(plan("once")))
if plan("exit") is not None:
    time.sleep(0.3)
    sys.exit(int(plan("exit")))
if plan("kill") is not None:
    os.kill(os.getpid(), signal.SIGKILL)
open(f"ready{number}", "w")
if plan("sleep") is not None:
    deadline = time.monotonic() + float(plan("sleep"))
    while time.monotonic() < deadline:
        time.sleep(0.01)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory whose ``unihetero_jax`` is the stand-in."""
    package = tmp_path / "unihetero_jax"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    return tmp_path


def begin(place: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, str(LAUNCHER), *arguments],
        cwd=place,
        env=environment | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_enable_fast_math=false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(place: Path, *arguments: str) -> tuple[int, str, str]:
    process = begin(place, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(path.exists() and (path.name.startswith("ready") or path.read_text()) for path in paths):
        assert time.monotonic() < deadline, f"{paths} did not appear"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(*pids: int) -> None:
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} live on"
        time.sleep(0.01)


def test_each_process_learns_its_number_and_its_output_carries_it(place):
    code, out, err = run(place, "--processes=3", "--devices=4", "--", "train", "--workdir=a b")
    assert code == 0
    lines = sorted(line for line in out.splitlines() if " out " in line)
    assert [line[:3] for line in lines] == ["[0]", "[1]", "[2]"]
    texts = {line[4:] for line in lines}
    assert len(texts) == 1
    word, count, address, *rest = texts.pop().split(maxsplit=3)
    assert (word, count, rest) == ("out", "3", ["train --workdir=a b"])
    host, port = address.split(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    flags = "flags --xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=4"
    assert sorted(err.splitlines()) == [f"[{number}] {flags}" for number in range(3)]


def test_real_devices_are_dealt_out(place):
    code, out, _ = run(place, "--processes=2", "--devices=2", "--platform=gpu", "--", "train")
    assert code == 0
    assert {line for line in out.splitlines() if "devices" in line} == {"[0] devices 0,1", "[1] devices 2,3"}


def test_a_failure_stops_the_others_and_gives_the_exit_code(place):
    started = time.monotonic()
    code, out, _ = run(place, "--processes=3", "--", "train", "exit1=3", "sleep0=60", "sleep2=60")
    assert code == 3
    assert time.monotonic() - started < 30
    assert "[0] got SIGTERM" in out
    assert "[2] got SIGTERM" in out
    wait_gone(*(int((place / f"pid{number}").read_text()) for number in range(3)))


def test_one_that_does_not_heed_sigterm_is_killed_after_the_grace(place):
    code, out, _ = run(place, "--processes=2", "--grace=0.5", "--", "train", "exit1=4", "sleep0=60", "stubborn0=1")
    assert code == 4
    assert "[0] got SIGTERM" in out
    wait_gone(int((place / "pid0").read_text()))


def test_death_by_a_signal_counts_as_in_a_shell(place):
    code, _, _ = run(place, "--processes=2", "--", "train", "kill1=1", "sleep0=60")
    assert code == 128 + signal.SIGKILL


@pytest.mark.parametrize(("restarts", "code", "starts"), [(0, 75, 1), (1, 75, 2), (2, 75, 3)])
def test_exit_code_75_starts_the_job_again(place, restarts, code, starts):
    found, _, err = run(place, "--processes=2", f"--restarts={restarts}", "--", "train", "exit1=75", "sleep0=60")
    assert found == code
    assert (place / "starts1").read_text() == "x" * starts
    assert (f"restart {restarts} of {restarts}" in err) == (restarts > 0)


@pytest.mark.parametrize("code", [75, 134])
def test_a_restart_that_succeeds_is_a_success(place, code):
    found, _, err = run(place, "--processes=2", "--restarts=5", "--", "train", f"once0={code}")
    assert found == 0
    assert (place / "starts0").read_text() == "xx"
    assert f"exit code {code}, restart 1 of 5" in err


def test_what_cannot_get_better_is_not_started_again(place):
    code, _, _ = run(place, "--processes=2", "--restarts=5", "--", "train", "exit1=2", "exit0=2")
    assert code == 2
    assert (place / "starts1").read_text() == "x"


def test_no_restart_after_a_signal_to_the_launcher(place):
    process = begin(place, "--processes=2", "--restarts=5", "--", "train", "sleep0=60", "sleep1=60")
    wait_for(place / "ready0", place / "ready1")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert (place / "starts0").read_text() == "x"


def test_a_killed_process_takes_the_others_along(place):
    process = begin(
        place, "--processes=3", "--grace=0.5", "--", "train", "sleep0=60", "sleep1=60", "stubborn1=1", "sleep2=60"
    )
    wait_for(*(place / f"ready{number}" for number in range(3)))
    pids = [int((place / f"pid{number}").read_text()) for number in range(3)]
    os.kill(pids[2], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    wait_gone(*pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process_once(place, number):
    process = begin(place, "--processes=2", "--", "train", "sleep0=60", "sleep1=60")
    wait_for(place / "ready0", place / "ready1")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert [(place / f"signal{index}").read_text() for index in range(2)] == [signal.Signals(number).name] * 2


def test_the_processes_die_with_a_killed_launcher(place):
    process = begin(place, "--processes=2", "--", "train", "sleep0=60", "sleep1=60", "stubborn0=1", "stubborn1=1")
    wait_for(place / "pid0", place / "pid1", place / "ready0", place / "ready1")
    pids = [int((place / f"pid{number}").read_text()) for number in range(2)]
    assert all(map(is_alive, pids))
    process.kill()
    process.wait()
    wait_gone(*pids)
    process.communicate()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--processes"),
        (["--processes=2"], "--"),
        (["--processes=2", "--"], "--"),
        (["--processes=0", "--", "train"], "'0'"),
        (["--processes=two", "--", "train"], "'two'"),
        (["--processes=2", "--devices=-1", "--", "train"], "'-1'"),
        (["--processes=2", "--platform=abacus", "--", "train"], "abacus"),
        (["--processes=2", "--grace=soon", "--", "train"], "soon"),
        (["--processes=2", "--gracious=1", "--", "train"], "--gracious"),
        (["--processes=2", "--restarts=-1", "--", "train"], "'-1'"),
        (["--processes=2", "train"], "--"),
    ],
)
def test_a_wrong_flag_is_one_line(place, arguments, word):
    code, out, err = run(place, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert word in err
