"""Real processes on this machine meet, agree and miss each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import runs

from unihetero_jax.errors import UsageError
from unihetero_jax.parallel import processes
from unihetero_jax.parallel.processes import differing


def _policies() -> bool:
    """Whether threads may be given a scheduling policy here."""
    if not hasattr(os, "SCHED_BATCH"):
        return False
    with ThreadPoolExecutor(1) as thread:
        changed = thread.submit(lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))
        return changed.exception() is None


POLICIES = _policies()

# Each process meets the other twice at one barrier, says something, disagrees, and waits for one that is late.
SCRIPT = """
import contextlib, os, sys, time
import jax
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel import processes

processes.start()
number = jax.process_index()
processes.barrier("twice")
processes.barrier("twice")
processes.tell("wait", f"{number}, at first")
processes.tell("wait", f"{number}, at last")
processes.barrier("told")
if hasattr(os, "SCHED_BATCH"):
    policies = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            policies.append(os.sched_getscheduler(int(thread)))
    print("patient", os.sched_getscheduler(0) != os.SCHED_BATCH in policies, flush=True)
print("told", processes.told("wait"), processes.told("other"), flush=True)
print("heard", processes.gather("topic", f"from {number}"), flush=True)
processes.agree({"seed": 1, "steps": 5}, "config")
try:
    processes.agree({"seed": 1, "steps": 5 + number}, "config")
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


@pytest.fixture(scope="module", params=[0, 1])
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


@pytest.mark.slow
def test_two_processes_meet_agree_and_miss_each_other(outputs):
    late, said = outputs
    for output in said:
        assert "patient True" in output or not POLICIES
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


@pytest.mark.skipif(not POLICIES, reason="no scheduling policies, or not to be changed")
@pytest.mark.parametrize("name", ["SCHED_OTHER", "SCHED_BATCH", "SCHED_IDLE"])
def test_a_chosen_scheduling_policy_stays(name):
    policy, found = getattr(os, name), []

    def start() -> None:
        os.sched_setscheduler(0, policy, os.sched_param(0))
        with processes._patient_threads():
            found.append(os.sched_getscheduler(0))
        found.append(os.sched_getscheduler(0))

    with ThreadPoolExecutor(1) as thread:
        thread.submit(start).result()
    assert found == [os.SCHED_BATCH if policy == os.SCHED_OTHER else policy, policy]
