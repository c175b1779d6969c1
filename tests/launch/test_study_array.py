"""A study on a cluster: what the launchers render of it, and that its tasks, run as rendered, make the study."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from test_render import check_bash, check_manifest, start

FIXTURE = runs.ROOT / "tests" / "fixtures" / "study.py"
# Two arms with ten seeds each.
COUNT = 20
RUN = f"study run {FIXTURE} --workdir=/shared/studies --seeds=10"
SETTINGS = f"""
[job]
name = "tiny"
arguments = ["study", "run", "{FIXTURE}", "--workdir=/shared/studies", "--seeds=10"]
restarts = 3
at_once = 4

[slurm]
nodes = 1
gpus_per_node = 1
cpus_per_node = 8
time = "1:00:00"
directory = "/shared/repository"

[gke]
cluster = "C"
project = "P"
zone = "Z"
image = "I"
accelerator = "nvidia-l4"
chips_per_host = 1
hosts = 1
claim = "studies"
mount = "/shared"
"""


@pytest.fixture
def settings(tmp_path):
    """(old text, new text)… → the settings with these changes."""

    def change(*pairs: tuple[str, str]) -> Path:
        text = SETTINGS
        for old, new in pairs:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return path

    return change


def render(program: str, path: Path) -> str:
    found = start(program, f"--settings={path}", "--dry-run")
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


def batch_scripts(submission: str) -> dict[str, str]:
    return dict(re.findall(r"<<'END_OF_(\w+)'\n(.*?\n)END_OF_\1\n", submission, re.DOTALL))


def directives(script: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE)
    header = script.splitlines()[1 : 1 + len(lines)]
    # sbatch reads directives up to the first command only.
    assert all(line.startswith("#SBATCH") for line in header)
    assert len(dict(lines)) == len(lines)
    return dict(lines)


def test_every_run_of_the_study_is_a_task(settings):
    """How many there are is said by nobody."""
    submission = render("slurm", settings())
    scripts = batch_scripts(submission)
    assert list(scripts) == ["PREPARE", "RUNS", "REPORT"]
    asked = {name: directives(script) for name, script in scripts.items()}
    assert asked["RUNS"]["array"] == f"0-{COUNT - 1}%4"
    assert asked["RUNS"]["output"] == "tiny-%A_%a.out"
    for name, script in scripts.items():
        assert "requeue" in asked[name]
        assert asked[name]["gpus-per-node"] == "1"
        assert ("array" in asked[name]) == (name == "RUNS")
        assert ("${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" in script) == (name == "RUNS")
        assert "srun --kill-on-bad-exit=1 --cpus-per-task=8 python -u -m unihetero_jax study " in script
    assert f"{RUN} --prepare\n" in scripts["PREPARE"]
    assert f'{RUN} --index="$SLURM_ARRAY_TASK_ID"\n' in scripts["RUNS"]
    assert f"study report {FIXTURE} --workdir=/shared/studies\n" in scripts["REPORT"]


def test_runs_may_share_a_node_or_have_several(settings):
    shared = batch_scripts(
        render("slurm", settings(("gpus_per_node = 1", "gpus_per_node = 8\ntasks_per_node = 8"), ("at_once = 4", "")))
    )
    asked = directives(shared["RUNS"])
    assert asked["array"] == f"0-{(COUNT - 1) // 8}"
    assert (asked["gpus-per-task"], asked["cpus-per-task"], asked["ntasks-per-node"]) == ("1", "1", "8")
    assert (directives(shared["PREPARE"])["gpus-per-node"], directives(shared["PREPARE"])["cpus-per-task"]) == (
        "1",
        "1",
    )
    large = batch_scripts(render("slurm", settings(("nodes = 1", "nodes = 4"))))
    assert {name: directives(script)["nodes"] for name, script in large.items()} == {
        "PREPARE": "1",
        "RUNS": "4",
        "REPORT": "1",
    }


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_scripts_are_good_bash(settings, tmp_path, tasks):
    submission = render("slurm", settings(("gpus_per_node = 1", f"gpus_per_node = 2\ntasks_per_node = {tasks}")))
    scripts = batch_scripts(submission)
    assert len(scripts) == 3
    for text in (submission, *scripts.values()):
        check_bash(text, tmp_path)


def test_runs_that_share_a_node_take_numbers_of_their_own(settings, tmp_path):
    """The last node has none for some of its tasks."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$SLURM_NTASKS $*"\n')
    (tmp_path / "srun").write_text(
        '#!/usr/bin/env bash\nfor ((task = 0; task < 8; task++)); do SLURM_PROCID=$task SLURM_NTASKS=8 "${@:4}"; done\n'
    )
    for name in ("python", "srun"):
        (tmp_path / name).chmod(0o755)
    changes = (
        ("gpus_per_node = 1", "gpus_per_node = 8\ntasks_per_node = 8"),
        ("/shared/repository", str(tmp_path)),
    )
    script = batch_scripts(render("slurm", settings(*changes)))["RUNS"]
    last = int(directives(script)["array"].partition("%")[0].removeprefix("0-"))
    said = []
    for task in range(last + 1):
        variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(task)}
        found = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
        said += found.stdout.splitlines()
    # A process that read SLURM_NTASKS=8 would wait for the other seven.
    assert all(line.startswith("1 -u -m unihetero_jax study run") for line in said)
    assert [line.rpartition("=")[2] for line in said] == [str(number) for number in range(COUNT)]


def test_the_manifest_has_a_pod_for_each_run(settings):
    manifest = check_manifest(render("gke", settings()))
    prepare, made, report = manifest["spec"]["replicatedJobs"]
    job = made["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (COUNT, 4, "Indexed")
    # A run that is stopped starts again alone; one whose config or loss is wrong ends alone.
    assert job["backoffLimitPerIndex"] == 3
    assert job["podFailurePolicy"]["rules"][0]["action"] == "FailIndex"
    assert "backoffLimit" not in job
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 0
    assert made["dependsOn"] == report["dependsOn"] == [{"name": prepare["name"], "status": "Complete"}]
    assert manifest["spec"]["successPolicy"]["targetReplicatedJobs"] == [made["name"]]
    commands = [
        " ".join(one["template"]["spec"]["template"]["spec"]["containers"][0]["command"][4:])
        for one in (prepare, made, report)
    ]
    assert commands == [
        f"{RUN} --prepare",
        f"{RUN} --index=$(JOB_COMPLETION_INDEX)",
        f"study report {FIXTURE} --workdir=/shared/studies --follow",
    ]
    for one, accelerator in ((prepare, True), (made, True), (report, False)):
        pod = one["template"]["spec"]["template"]["spec"]
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "studies"}}]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
        assert ("nodeSelector" in pod) == ("resources" in pod["containers"][0]) == accelerator


@pytest.mark.parametrize(
    ("program", "old", "new", "words"),
    [
        ("slurm", f'"{FIXTURE}"', '"mutual_benefits"', ["job.arguments", "did you mean 'mutual_benefit'"]),
        ("slurm", '"--seeds=10"', '"--seed=2"', ["job.arguments", "--seed", "did you mean '--seeds'"]),
        ("slurm", '"--seeds=10"', '"--index=2"', ["job.arguments", "--index", "leave them out"]),
        ("slurm", '"run"', '"report"', ["job.arguments", "'study', 'run'"]),
        ("slurm", f'"{FIXTURE}"', '"real_world"', ["job.arguments", "--data=emoji=DIR"]),
        ("slurm", f'"study", "run", "{FIXTURE}"', '"train"', ["job.at_once=4", "only a study"]),
        ("slurm", "nodes = 1", "nodes = 2\ntasks_per_node = 2", ["slurm.nodes=2", "tasks_per_node=2"]),
        ("gke", "hosts = 1", "hosts = 2", ["gke.hosts=2", "one host"]),
        ("gke", 'claim = "studies"\nmount = "/shared"', "", ["gke.claim", "volume"]),
        ("gke", 'mount = "/shared"', "", ["gke.claim='studies'", "both or none"]),
    ],
)
def test_a_wrong_setting_is_one_line(settings, program, old, new, words):
    pairs = [(old, new)]
    if "tasks_per_node" in new:
        pairs.append(("gpus_per_node = 1", "gpus_per_node = 2"))
    found = start(program, f"--settings={settings(*pairs)}", "--dry-run")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1
    assert all(word in found.stderr for word in words), found.stderr


STUDY = f"""
import dataclasses
from unihetero_jax.study import registry

base = registry.find({str(FIXTURE)!r})


def experiment(levels, scale):
    config = base.experiment(levels, scale)
    config.train.steps = 2
    config.model.decoder.layers = 1
    config.evaluators.vqa = None
    config.evaluate.pictures = 0
    return config


STUDY = dataclasses.replace(base, experiment=experiment)
"""
SBATCH = """#!/usr/bin/env bash
number=$(($(cat jobs) + 1))
echo $number > jobs
echo "$@" > "$number.options"
cat > "$number.sh"
echo "$number;cluster"
"""


class Cluster:
    """Runs batch scripts here, one process a step, and starts again what ``scontrol`` is told to."""

    def __init__(self, place: Path):
        self._place = place
        (place / "jobs").write_text("0")
        (place / "bin").mkdir()
        for name, text in (
            ("sbatch", SBATCH),
            ("srun", '#!/bin/sh\nwhile case $1 in --*) ;; *) false;; esac; do shift; done\nexec "$@"\n'),
            ("scontrol", '#!/bin/sh\necho "$2" >> requeued\n'),
            ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
        ):
            (place / "bin" / name).write_text(text)
            (place / "bin" / name).chmod(0o755)

    def start(self, script: str, **variables: str | int) -> subprocess.Popen[str]:
        path = f"{self._place}/bin:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", "-c", script],
            cwd=self._place,
            env=runs.environment() | {"PATH": path} | {name: str(value) for name, value in variables.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def terminate_step(self, script: subprocess.Popen[str]) -> None:
        """As before a time limit: to the processes of the step, and not to the script."""
        children = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
        for pid in map(int, children):
            os.kill(pid, signal.SIGTERM)


@pytest.mark.slow
def test_the_array_as_rendered_makes_the_study(settings, tmp_path):
    """Two arms: one runs through, the other one is stopped, queued again by itself, and goes on."""
    (tmp_path / "two.py").write_text(STUDY)
    cluster = Cluster(tmp_path)
    workdir = tmp_path / "w"
    path = settings(
        (f'"{FIXTURE}", "--workdir=/shared/studies", "--seeds=10"', f'"two.py", "--workdir={workdir}", "--seeds=1"'),
        ("/shared/repository", str(tmp_path)),
        ("at_once = 4", ""),
    )
    submission = subprocess.run(
        [sys.executable, str(runs.ROOT / "launch" / "slurm.py"), f"--settings={path}", "--dry-run"],
        cwd=tmp_path,
        env=runs.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "runs 2_[0-1], report 3" in runs.finish(cluster.start(submission))
    scripts = [(tmp_path / f"{number}.sh").read_text() for number in (1, 2, 3)]
    assert "--dependency=afterok:1 " in (tmp_path / "2.options").read_text()
    assert "--dependency=afterany:2\n" in (tmp_path / "3.options").read_text()

    # Two that come at the same time make the shared parts once.
    said = [cluster.start(scripts[0], SLURM_JOB_ID=1) for _ in range(2)]
    assert "".join(map(runs.finish, said)).count("which runs share") == 1

    tasks = [
        cluster.start(scripts[1], SLURM_JOB_ID=6 + task, SLURM_ARRAY_JOB_ID=2, SLURM_ARRAY_TASK_ID=task)
        for task in (0, 1)
    ]
    logs = workdir / "fixture" / "arms" / "1.0" / "seed-0" / "log"
    assert runs.wait_until(lambda: logs.exists() and logs.read_text(), tasks[1])
    cluster.terminate_step(tasks[1])
    assert "exit code 75, restart 1 of 3" in runs.finish(tasks[1])
    assert (tmp_path / "requeued").read_text() == "2_1\n"
    again = cluster.start(
        scripts[1], SLURM_JOB_ID=7, SLURM_ARRAY_JOB_ID=2, SLURM_ARRAY_TASK_ID=1, SLURM_RESTART_COUNT=1
    )
    for task in (tasks[0], again):
        said = runs.finish(task)
        assert "is done (1 of 1" in said
        assert "which runs share" not in said
    runs.finish(cluster.start(scripts[2], SLURM_JOB_ID=3))
    told = json.loads((workdir / "fixture" / "report.json").read_text())
    assert told["runs"] == {"0.0": [0], "1.0": [0]}
    assert told["claims"][0]["seeds"] == 1
