"""A process that hangs in the middle of a run: everyone says where, and the launcher starts the run again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import runs

# Python imports this by itself: in the first start, the second process never gets its eighth batch.
HANG = """
import os, time

def install():
    from unihetero_jax.data.packing.batch_stream import BatchStream
    draw = BatchStream.__next__
    drawn = []

    def never_comes_back(stream):
        drawn.append(1)
        if len(drawn) == 8:
            open(os.environ["HANG"], "w").close()
            time.sleep(600)
        return draw(stream)

    BatchStream.__next__ = never_comes_back

if os.environ.get("JAX_PROCESS_ID") == "1" and not os.path.exists(os.environ["HANG"]):
    install()
"""


@pytest.mark.slow
def test_a_hung_step_ends_in_stacks_of_all_hosts_and_a_restart(dataset, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANG)
    workdir = tmp_path / "run"
    variables = runs.environment(1, HANG=str(tmp_path / "hung"))
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), variables["PYTHONPATH"]])
    command = [sys.executable, str(runs.LAUNCHER), "--processes=2", "--restarts=1", "--"]
    options = ("train.steps=10", "train.hang_timeout=10", "checkpoint.every_steps=5", "evaluate.at_end=false")
    process = subprocess.Popen(
        command + runs.train_command(workdir, dataset, *options),
        cwd=runs.ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output = runs.finish(process)
    assert (tmp_path / "hung").exists()
    assert "exit code 75, restart 1 of 1" in output
    hung = (workdir / "logs" / "host-00001.stacks").read_text()
    assert " s after step 6" in hung
    assert "never_comes_back" in hung
    # The first process waits for the second one in a collective, or for its metrics.
    assert "loop.py" in (workdir / "logs" / "host-00000.stacks").read_text()
    assert [row["step"] for row in runs.metrics(workdir)] == list(range(1, 11))
    logs = [(workdir / "logs" / f"host-{number:05d}.log").read_text() for number in range(2)]
    assert all(log.count("compiled the step") == 2 for log in logs)
    assert "2 processes with 1 cpu devices" in logs[0]
    assert "2 processes with" not in logs[1]
