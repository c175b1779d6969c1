"""Hosts that differ do not start: in their config, their code, or what they see of the data."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys

import runs

from unihetero_jax.config import Config
from unihetero_jax.train import hosts

# Each process sees a dataset of its own, and, in the second round, has other sources.
SCRIPT = """
import sys
from pathlib import Path
import jax
from unihetero_jax import errors
from unihetero_jax.config import Config
from unihetero_jax.data.records.manifest import fingerprint, load_manifest
from unihetero_jax.parallel import processes
from unihetero_jax.train import hosts

processes.start()
hosts.check_alike(Config())
for places in (["same"], [sys.argv[1]]):
    try:
        hosts.check_data_alike(fingerprint(load_manifest(Path(sys.argv[2]) / name)) for name in places)
        print("alike", flush=True)
    except errors.UsageError as error:
        print("refused", error, flush=True)
"""


def start_pair(*commands: list[str]) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=runs.ROOT,
            env=runs.environment(
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(number),
                UNIHETERO_START_TIMEOUT="100" if len(commands) == 2 else "1",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for number, command in enumerate(commands)
    ]


def command(workdir, *overrides):
    return ["-m", "unihetero_jax", *runs.train_command(workdir, workdir / "data", *overrides)]


def test_another_config_is_refused_by_host_and_key(tmp_path):
    workdir = tmp_path / "run"
    started = start_pair(command(workdir), command(workdir, "train.seed=7", "data.threads=1"))
    for process in started:
        output = runs.finish(process, code=2)
        assert "unihetero: error: the hosts do not agree about config: host 1 (" in output
        assert "config.train.seed=7, where others have 0" in output
        assert "threads" not in output
        assert "Traceback" not in output
    assert not workdir.exists()


def test_a_host_that_does_not_come_is_named_and_may_be_tried_again(tmp_path):
    (process,) = start_pair(command(tmp_path / "run"))
    output = runs.finish(process, code=75)
    assert "unihetero: error: 1 of 2 processes did not arrive in 1 s: 1; here are 0 (" in output
    assert "Traceback" not in output


def test_other_data_is_refused(watch_data, tmp_path):
    shutil.copytree(watch_data, tmp_path / "same")
    shutil.copytree(watch_data, tmp_path / "other")
    path = tmp_path / "other" / "manifest.json"
    manifest = json.loads(path.read_text())
    next(iter(manifest["files"].values()))["sha256"] = "0"
    path.write_text(json.dumps(manifest))
    started = start_pair(*(["-c", SCRIPT, name, str(tmp_path)] for name in ("same", "other")))
    for process in started:
        first, second = [line for line in runs.finish(process).splitlines() if line.startswith(("alike", "refused"))]
        assert first == "alike"
        assert second.startswith("refused the hosts do not agree about data: host 1 (")
        assert "dataset 0=" in second


def test_what_is_compared(monkeypatch, tmp_path):
    told = {}
    monkeypatch.setattr(hosts.processes, "check_equal", lambda facts, topic, timeout_s: told.update({topic: facts}))
    config = Config()
    hosts.check_alike(config)
    assert told["config"]["config.model.decoder.width"] == config.model.decoder.width
    assert "config.data.threads" not in told["config"]
    before = told["code"]
    assert {"unihetero_jax", "jax", "jaxlib"} <= before.keys()
    monkeypatch.setattr(hosts, "__file__", str(tmp_path / "train" / "hosts.py"))
    digests = set()
    for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", "x = 2")):
        (tmp_path / name).write_text(text)
        hosts.check_alike(config)
        digests.add(told["code"]["unihetero_jax"])
    assert len(digests | {before["unihetero_jax"]}) == 4
