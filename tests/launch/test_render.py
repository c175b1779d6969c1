"""What the launchers hand to SLURM, to Kubernetes and to a TPU VM, held against what those accept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import yaml

LAUNCH = runs.ROOT / "launch"
EXAMPLE = LAUNCH / "settings.example.toml"
SCRIPTS = ("slurm", "tpu_vm")
COMMAND = "python -u -m unihetero_jax train --config=configs/unihetero_7b.py --workdir=/shared/runs/unihetero"


def start(program: str, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(runs.ROOT)} | ({"PATH": path} if path is not None else {})
    return subprocess.run(
        [sys.executable, str(LAUNCH / f"{program}.py"), *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def render(program: str, settings: Path = EXAMPLE) -> str:
    found = start(program, f"--settings={settings}", "--dry-run")
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


@pytest.fixture
def changed(tmp_path):
    """(old text, new text)… → the example with these changes."""

    def change(*pairs: tuple[str, str]) -> Path:
        text = EXAMPLE.read_text()
        for old, new in pairs:
            assert text.count(old) >= 1, old
            text = text.replace(old, new)
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return path

    return change


def check_bash(text: str, place: Path) -> None:
    """That bash can read a script, and that shellcheck, where it is installed, finds nothing wrong in it."""
    path = place / "script.sh"
    path.write_text(text)
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shellcheck := shutil.which("shellcheck", path=os.pathsep.join([os.environ["PATH"], sys.exec_prefix + "/bin"])):
        found = subprocess.run(
            [shellcheck, "--severity=warning", str(path)], capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stdout


def embedded(script: str) -> list[str]:
    """The scripts that a script sends to other machines."""
    return re.findall(r"<<'(END_OF_\w+)'\n(.*?)\n\1\n", script, re.DOTALL)


@pytest.mark.parametrize("program", SCRIPTS)
def test_scripts_are_good_bash(program, tmp_path):
    script = render(program)
    parts = [script, *(f"#!/usr/bin/env bash\n{text}\n" for _, text in embedded(script))]
    assert len(parts) == (3 if program == "tpu_vm" else 1)
    for text in parts:
        check_bash(text, tmp_path)


def test_the_batch_header_asks_for_what_the_settings_say(changed):
    script = render("slurm", changed(('account = ""', 'account = "lab"')))
    first, *lines = script.splitlines()
    assert first == "#!/usr/bin/env bash"
    header = [line for line in lines if line.startswith("#SBATCH")]
    # sbatch reads directives up to the first command only.
    assert lines[: len(header)] == header
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in header)
    assert len(options) == len(header)
    assert options == {
        "job-name": "unihetero",
        "nodes": "4",
        "ntasks-per-node": "1",
        "cpus-per-task": "96",
        "gpus-per-node": "8",
        "time": "24:00:00",
        "signal": "TERM@300",
        "output": "unihetero-%j.out",
        "open-mode": "append",
        "partition": "gpu",
        "account": "lab",
        "requeue": "",
    }


def test_tasks_of_a_node_get_gpus_of_their_own(changed):
    script = render("slurm", changed(("tasks_per_node = 1", "tasks_per_node = 4")))
    assert "#SBATCH --gpus-per-task=2\n" in script
    assert "#SBATCH --cpus-per-task=24\n" in script
    assert "gpus-per-node" not in script


@pytest.mark.parametrize(
    ("code", "restarted", "left", "queued"),
    [(75, 0, 0, True), (137, 3, 0, True), (75, 20, 75, False), (0, 0, 0, False), (2, 0, 2, False), (1, 0, 1, False)],
)
def test_the_batch_script_queues_itself_again(tmp_path, changed, code, restarted, left, queued):
    for name, text in (("srun", f'echo "$@" > srun; exit {code}'), ("scontrol", 'echo "$@" > scontrol')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    work = tmp_path / "a place"
    work.mkdir()
    script = render("slurm", changed(("/shared/unihetero", str(work)), ("source .venv/bin/activate", "greeting='hi'")))
    variables = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarted),
    }
    found = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=False)
    assert found.returncode == left, found.stderr
    assert (work / "srun").read_text() == f"--kill-on-bad-exit=1 --cpus-per-task=96 {COMMAND}\n"
    assert (work / "scontrol").exists() == queued
    assert not queued or (work / "scontrol").read_text() == "requeue 7\n"


def check_manifest(text: str) -> dict:
    jsonschema = pytest.importorskip("jsonschema")
    manifest = yaml.safe_load(text)
    jsonschema.validate(manifest, json.loads(Path(__file__).with_name("jobset.schema.json").read_text()))
    return manifest


def test_the_manifest_of_a_tpu_slice():
    text = render("gke")
    manifest = check_manifest(text)
    spec = manifest["spec"]["replicatedJobs"][0]
    job = spec["template"]["spec"]
    pod = job["template"]["spec"]
    assert (spec["replicas"], job["parallelism"], job["completions"]) == (1, 64, 64)
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 20
    # A wrong config or loss ends the set; whatever else ends a pod starts all of them again.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"], rule["onExitCodes"]["values"]) == ("FailJob", "In", [1, 2])
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert job["backoffLimit"] == 0
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8x8"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert " ".join(pod["containers"][0]["command"]) == COMMAND
    timeout, identity = pod["containers"][0]["env"]
    assert timeout == {"name": "UNIHETERO_START_TIMEOUT", "value": "900"}
    assert identity["name"] == "UNIHETERO_JOB", "restarted pods take over their run's lock"
    assert "jobset-uid" in identity["valueFrom"]["fieldRef"]["fieldPath"]
    xpk = text.splitlines()[1]
    assert xpk.startswith("# xpk workload create --cluster=CLUSTER ")
    assert "--tpu-type=v5p-512 --num-slices=1" in xpk
    assert f"'--command={COMMAND}'" in xpk


def test_gpu_hosts_meet_at_the_first_pod(changed):
    changes = [
        ('topology = "4x8x8"', 'topology = ""'),
        ("hosts = 0", "hosts = 6"),
        ("chips_per_host = 4", "chips_per_host = 8"),
    ]
    manifest = check_manifest(render("gke", changed(*changes)))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert job["completions"] == 6
    assert variables["JAX_COORDINATOR_ADDRESS"] == "unihetero-workers-0-0.unihetero:8476"
    assert variables["JAX_NUM_PROCESSES"] == "6"
    assert "job-completion-index" in container["env"][-1]["valueFrom"]["fieldRef"]["fieldPath"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}


GCLOUD = """#!/bin/sh
for given; do case $given in --command=*) bash -c "${given#--command=}"; exit $?; esac; done
exit 9
"""


@pytest.mark.parametrize(
    ("codes", "left", "starts"), [("75 0", 0, 2), ("137 0", 0, 2), ("2 0", 2, 1), ("75 75 75", 75, 2)]
)
def test_the_workers_of_a_tpu_vm_are_started_again(tmp_path, changed, codes, left, starts):
    (tmp_path / "bin").mkdir()
    counting = f"#!/bin/sh\necho x >> starts\nset -- {codes}\nshift $(($(wc -l < starts) - 1))\nexit $1\n"
    for name, text in (("gcloud", GCLOUD), ("python", counting)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    name = f"t{os.getpid()}"
    settings = changed(
        ('name = "unihetero"', f'name = "{name}"'),
        ("restarts = 20", "restarts = 1"),
        ('directory = "unihetero"', f'directory = "{tmp_path}"'),
        ("source .venv/bin/activate", "greeting='hi'"),
    )
    script = render("tpu_vm", settings)
    variables = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    found = subprocess.run(
        ["bash", "-c", script], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == left, found.stderr
    assert (tmp_path / "starts").read_text().count("x") == starts
    assert not Path(f"/tmp/{name}.pid").exists()


@pytest.mark.parametrize(
    ("program", "old", "new", "words"),
    [
        ("slurm", "nodes = 4", "node = 4", ["slurm.node", "did you mean 'nodes'"]),
        ("slurm", "nodes = 4", 'nodes = "4"', ["slurm.nodes='4'", "integer"]),
        ("slurm", "nodes = 4", "nodes = 0", ["slurm.nodes=0", "above 0"]),
        ("slurm", "nodes = 4\n", "", ["slurm.nodes is missing"]),
        ("slurm", "24:00:00", "a day", ["slurm.time='a day'", "HH:MM:SS"]),
        ("slurm", 'partition = "gpu"', 'partition = "gpu --wrap"', ["slurm.partition", "one word"]),
        ("slurm", "tasks_per_node = 1", "tasks_per_node = 5", ["tasks_per_node=5", "divide"]),
        ("slurm", "[slurm]", "[slrum]", ["[slrum]", "did you mean 'slurm'"]),
        ("slurm", 'name = "unihetero"', 'name = "Uni Hetero"', ["job.name='Uni Hetero'", "lower-case"]),
        ("slurm", 'name = "unihetero"', 'name = "a\\nb"', ["job.name", "one line"]),
        ("slurm", "[job]", "[job", ["not TOML"]),
        ("slurm", "UNIHETERO_START_TIMEOUT =", '"A B" =', ["job.environment.A B", "letters"]),
        ("gke", 'topology = "4x8x8"', 'topology = "4,8"', ["gke.topology='4,8'", "4x8x8"]),
        ("gke", "chips_per_host = 4", "chips_per_host = 7", ["chips_per_host=7", "256"]),
        ("gke", "hosts = 0", "hosts = 2", ["gke.topology", "not both"]),
        ("tpu_vm", 'tpu = "NAME"', "tpu = 3", ["tpu_vm.tpu=3", "text"]),
    ],
)
def test_a_wrong_setting_is_one_line(changed, program, old, new, words):
    found = start(program, f"--settings={changed((old, new))}", "--dry-run")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1
    assert all(word in found.stderr for word in words), found.stderr


@pytest.mark.parametrize(("program", "needed"), [("slurm", "sbatch"), ("gke", "kubectl")])
def test_without_dry_run_the_job_is_handed_over(tmp_path, program, needed):
    found = start(program, f"--settings={EXAMPLE}", path=str(tmp_path))
    assert found.returncode == 2
    assert f"{needed} is not on PATH" in found.stderr
    (tmp_path / needed).write_text('#!/bin/sh\nIFS= read -r first\necho "got $first $*"\nexit 3\n')
    (tmp_path / needed).chmod(0o755)
    found = start(program, f"--settings={EXAMPLE}", path=str(tmp_path))
    assert found.returncode == 3
    assert found.stdout.startswith("got #")


def test_a_missing_file_is_named(tmp_path):
    found = start("slurm", f"--settings={tmp_path / 'no.toml'}")
    assert found.returncode == 2
    assert "no.toml: cannot be read" in found.stderr
