"""One training at a time writes to a workdir, and a lost one does not block the next."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import runs
from matrices import matrix

from unihetero_jax.errors import UsageError
from unihetero_jax.run import lock
from unihetero_jax.run.lock import FILE, LEASE_S, WorkdirLock

HOLD = """
    import sys, time
    from pathlib import Path
    from unihetero_jax.run.lock import WorkdirLock
    kept = WorkdirLock.acquire(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


def hold(workdir, **environment):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(workdir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**runs.environment(), **environment},
    )
    assert process.stdout.readline() == "held\n"
    return process


def elsewhere(workdir, age_s, job=""):
    """What a process on another host left behind, that looked at it last ``age_s`` seconds ago."""
    workdir.mkdir(exist_ok=True)
    file = workdir / FILE
    file.write_text(json.dumps({"host": "gpu-07", "pid": 5, "since": "yesterday", "job": job, "token": "theirs"}))
    os.utime(file, (time.time() - age_s,) * 2)


def test_the_second_is_refused_and_told_who_holds_it_and_a_killed_one_frees_it_at_once(tmp_path):
    holder = hold(tmp_path)
    with pytest.raises(UsageError, match=rf"process {holder.pid} on {socket.gethostname()}, since \d+.*trains there"):
        WorkdirLock.acquire(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    mine = WorkdirLock.acquire(tmp_path)
    mine.check()
    mine.close()
    WorkdirLock.acquire(tmp_path).close()


def test_a_living_process_of_the_same_job_is_refused_too(tmp_path):
    holder = hold(tmp_path, UNIHETERO_JOB="same")
    try:
        with pytest.raises(UsageError, match="trains there already"):
            WorkdirLock.acquire(tmp_path, {"UNIHETERO_JOB": "same"})
    finally:
        holder.kill()


def test_another_host_keeps_it_until_its_lease_ends(tmp_path):
    elsewhere(tmp_path, age_s=LEASE_S / 2)
    with pytest.raises(UsageError, match=r"process 5 on gpu-07, since yesterday, .* its claim ends in (29|30) s"):
        WorkdirLock.acquire(tmp_path, {})
    elsewhere(tmp_path, age_s=LEASE_S + 1)
    WorkdirLock.acquire(tmp_path, {}).close()


def test_without_locks_of_the_file_system_the_lease_counts(tmp_path, monkeypatch):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    mine = WorkdirLock.acquire(tmp_path, {})
    with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* its claim ends in (59|60) s"):
        WorkdirLock.acquire(tmp_path, {})
    mine.close()
    WorkdirLock.acquire(tmp_path, {}).close()


@pytest.mark.parametrize("name", ["UNIHETERO_JOB", "SLURM_JOB_ID"])
def test_the_same_job_takes_over_its_lock_from_another_host_at_once(tmp_path, name):
    elsewhere(tmp_path, age_s=1, job="8154")
    with pytest.raises(UsageError, match="gpu-07"):
        WorkdirLock.acquire(tmp_path, {name: "9000"})
    WorkdirLock.acquire(tmp_path, {name: "8154"}).close()


def test_the_holder_renews_its_lease_and_notices_that_it_was_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_S", 0.4)
    mine = WorkdirLock.acquire(tmp_path)
    os.utime(tmp_path / FILE, (0, 0))
    deadline = time.monotonic() + 10
    while (tmp_path / FILE).stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / FILE).stat().st_mtime > 0
    mine.check()
    (tmp_path / FILE).write_text(json.dumps({"host": "gpu-07", "pid": 5, "since": "now", "token": "theirs"}))
    with pytest.raises(UsageError, match=r"process 5 on gpu-07.*has lost its claim and ends"):
        mine.check()
    mine.close()
    assert json.loads((tmp_path / FILE).read_text())["token"] == "theirs", "what is not ours is left alone"


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("lock") / "alone"
    runs.finish(runs.start(runs.train_command(workdir, dataset, "train.steps=6")))
    return workdir


# Starts within three seconds of one another, at moments of their own.
LATER = [round(float(draw), 2) for draw in np.random.default_rng(0).uniform(0, 3, 20)]


@pytest.mark.parametrize("later_s", matrix(LATER, fast=LATER[:1]))
def test_two_trainings_in_one_workdir_one_trains_as_if_alone_and_one_is_refused(dataset, tmp_path, alone, later_s):
    command = runs.train_command(tmp_path / "both", dataset, "train.steps=6")
    pair = [runs.start(command)]
    time.sleep(later_s)
    pair.append(runs.start(command))
    ended = [(process.communicate(timeout=runs.PATIENCE_S)[0], process.returncode) for process in pair]
    said = {code: output for output, code in ended}
    assert said.keys() == {0, 2}
    assert "trains there already" in said[2].splitlines()[-1]
    assert "Traceback" not in said[2]
    assert runs.metrics(tmp_path / "both") == runs.metrics(alone)
