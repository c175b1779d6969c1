"""Real processes on this machine meet, agree and miss each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import runs
from matrices import matrix

from unihetero_jax.errors import UsageError
from unihetero_jax.parallel import processes
from unihetero_jax.parallel.processes import differing

# Each process meets the other twice at one barrier, says something, disagrees, and waits for one that is late.
SCRIPT = """
import contextlib, os, sys, time
from concurrent.futures import ThreadPoolExecutor
import jax
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel import processes

processes.start()
number = jax.process_index()
processes.barrier("twice")
processes.barrier("twice")
processes.publish("wait", f"{number}, at first")
processes.publish("wait", f"{number}, at last")
processes.barrier("told")
if sys.platform == "linux":
    policies = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            policies.append(os.sched_getscheduler(int(thread)))
    own = os.sched_getscheduler(0)
    with ThreadPoolExecutor(1) as thread:
        allowed = not thread.submit(os.sched_setscheduler, 0, os.SCHED_BATCH, os.sched_param(0)).exception()
    print("patient", (os.SCHED_BATCH in policies) == allowed and own != os.SCHED_BATCH, flush=True)
print("told", processes.published("wait"), processes.published("other"), flush=True)
print("heard", processes.gather("topic", f"from {number}"), flush=True)
processes.check_equal({"seed": 1, "steps": 5}, "config")
try:
    processes.check_equal({"seed": 1, "steps": 5 + number}, "config")
except UsageError as error:
    print("refused", error, flush=True)
late = int(sys.argv[1])
try:
    if number == late:
        time.sleep(1.5)
    else:
        processes.barrier("late", timeout_s=0.5)
except processes.HostMissing as error:
    print("missing", error, flush=True)
processes.barrier("end")
"""


@pytest.fixture(scope="module", params=matrix([0, 1], fast=[1]))
def outputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[str]]:
    """Which process was late, and what both said."""
    script = tmp_path_factory.mktemp("processes") / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(request.param)],
            env=runs.environment(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(number)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for number in range(2)
    ]
    return request.param, [runs.finish(process) for process in started]


def test_two_processes_meet_agree_and_miss_each_other(outputs):
    late, said = outputs
    for output in said:
        assert ("patient True" in output) == (sys.platform == "linux")
        assert "told {0: '0, at last', 1: '1, at last'} {}" in output
        assert "heard ['from 0', 'from 1']" in output
        assert "refused the hosts do not agree about config: host 1 (" in output
        assert "steps=6, where others have 5" in output
    assert f"missing not at 'late' after 0.5 s: host {late} (" in said[1 - late]
    assert "missing" not in said[late]


def test_a_port_that_is_taken_is_one_line(monkeypatch):
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        for name, value in (("COORDINATOR_ADDRESS", f"127.0.0.1:{port}"), ("NUM_PROCESSES", "2"), ("PROCESS_ID", "0")):
            monkeypatch.setenv(f"JAX_{name}", value)
        with pytest.raises(UsageError, match=f"process 0 cannot listen at 127.0.0.1:{port}"):
            processes.start()


def test_a_start_timeout_that_is_no_number_is_refused(monkeypatch):
    for name, value in (("COORDINATOR_ADDRESS", "a:1"), ("NUM_PROCESSES", "2"), ("PROCESS_ID", "0")):
        monkeypatch.setenv(f"JAX_{name}", value)
    monkeypatch.setenv("UNIHETERO_START_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="UNIHETERO_START_TIMEOUT=soon: expected seconds"):
        processes.start()


def test_most_hosts_are_right_and_of_two_the_first():
    same = {"seed": 1, "steps": 5}
    assert differing([same, same, same]) == {}
    assert differing([same | {"seed": 2}, same, same]) == {0: ["seed=2, where others have 1"]}
    assert differing([same, same | {"seed": 2}]) == {1: ["seed=2, where others have 1"]}
    assert differing([same, {"seed": 1}]) == {1: ["steps=nothing, where others have 5"]}


@pytest.fixture
def policy(monkeypatch):
    """A thread's scheduling policy, as by sched(7), whatever this machine lets threads choose."""
    found = {"own": 0, "refused": False}

    def change(thread, own, parameters):
        assert (thread, parameters) == (0, "priority 0")
        if found["refused"]:
            raise PermissionError("not here")
        found["own"] = own

    for number, name in enumerate(("SCHED_OTHER", "SCHED_BATCH", "SCHED_IDLE")):
        monkeypatch.setattr(os, name, number, raising=False)
    monkeypatch.setattr(os, "sched_param", "priority {}".format, raising=False)
    monkeypatch.setattr(os, "sched_getscheduler", lambda thread: found["own"], raising=False)
    monkeypatch.setattr(os, "sched_setscheduler", change, raising=False)
    return found


@pytest.mark.parametrize(("own", "meanwhile"), [(0, 1), (1, 1), (2, 2)])
def test_threads_start_patient_unless_another_policy_was_chosen(policy, own, meanwhile):
    policy["own"] = own
    with processes._patient_threads():
        assert policy["own"] == meanwhile
    assert policy["own"] == own


@pytest.mark.parametrize("absent", [False, True])
def test_threads_start_where_no_policy_may_be_chosen(policy, monkeypatch, absent):
    policy["refused"] = not absent
    if absent:
        for name in ("SCHED_BATCH", "sched_param", "sched_getscheduler", "sched_setscheduler"):
            monkeypatch.delattr(os, name)
    with processes._patient_threads():
        assert policy["own"] == 0
    assert policy["own"] == 0
