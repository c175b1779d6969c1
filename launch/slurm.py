"""Submits one job to SLURM, as a batch script that puts itself back into the queue.

    python launch/slurm.py --settings=settings.toml --dry-run

The script asks for SIGTERM some time before its time limit; the run saves and exits with code 75, and is queued again,
as it is when a process was killed. What is wrong with the config (exit code 2) or the loss (1) is not tried again.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from settings import Job, launch, read

from unihetero_jax.errors import UsageError

_TIME = re.compile(r"(\d+-)?\d{1,2}:\d{2}:\d{2}|\d+")
_WORD = re.compile(r"[\w.,:&|()\[\]*-]*")


@dataclass(frozen=True)
class Slurm:
    """Section ``[slurm]``: what to ask for. ``directory``: of the repository on the nodes; ``setup``: lines of bash."""

    nodes: int
    gpus_per_node: int
    cpus_per_node: int
    time: str
    directory: str
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    tasks_per_node: int = 1
    setup: list[str] = field(default_factory=list)


def render(path: Path) -> str:
    """The batch script of a settings file.

    Raises:
      UsageError: naming the key and what was expected.
    """
    job, slurm = read(path, "slurm", Slurm)
    _check(path, slurm)
    gpus, tasks = slurm.gpus_per_node, slurm.tasks_per_node
    asked = {
        "job-name": job.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": slurm.cpus_per_node // tasks,
        # Tasks that share a node each get their own; JAX would give every one of them all.
        **({"gpus-per-node": gpus} if tasks == 1 and gpus else {}),
        **({"gpus-per-task": gpus // tasks} if tasks > 1 and gpus else {}),
        "time": slurm.time,
        # Without "B:", to the processes and not to the script, which stays to queue the job again.
        "signal": f"TERM@{job.grace}",
        "output": f"{job.name}-%j.out",
        "open-mode": "append",
        **{name: getattr(slurm, name) for name in ("partition", "account", "qos", "constraint")},
    }
    header = [f"#SBATCH --{name}={value}" for name, value in asked.items() if value != ""]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    return "\n".join(["#!/usr/bin/env bash", *header, "#SBATCH --requeue", *_body(job, slurm, exports)]) + "\n"


def _body(job: Job, slurm: Slurm, exports: list[str]) -> list[str]:
    return [
        "set -uo pipefail",
        f"cd {shlex.quote(slurm.directory)} || exit 2",
        *slurm.setup,
        *exports,
        "",
        "# A process that fails takes the others with it; those of a hung step leave by themselves.",
        f"srun --kill-on-bad-exit=1 python -u -m unihetero_jax {shlex.join(job.arguments)}",
        "code=$?",
        "",
        "# 75: saved, or hung. Above 128: a process was killed, which aborts the others.",
        "restarts=${SLURM_RESTART_COUNT:-0}",
        f'if {{ [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; }} && [ "$restarts" -lt {job.restarts} ]; then',
        f'    echo "exit code $code, restart $((restarts + 1)) of {job.restarts}"',
        '    scontrol requeue "$SLURM_JOB_ID" && exit 0',
        "fi",
        'exit "$code"',
    ]


def _check(path: Path, slurm: Slurm) -> None:
    for name in ("nodes", "cpus_per_node", "tasks_per_node"):
        if not getattr(slurm, name):
            raise UsageError(f"{path}: slurm.{name}=0: expected an integer above 0")
    for name in ("gpus_per_node", "cpus_per_node"):
        if getattr(slurm, name) % slurm.tasks_per_node:
            raise UsageError(
                f"{path}: slurm.tasks_per_node={slurm.tasks_per_node} does not divide slurm.{name}="
                f"{getattr(slurm, name)}"
            )
    if not _TIME.fullmatch(slurm.time):
        raise UsageError(f"{path}: slurm.time={slurm.time!r}: expected minutes, HH:MM:SS or D-HH:MM:SS")
    for name in ("partition", "account", "qos", "constraint"):
        if not _WORD.fullmatch(getattr(slurm, name)):
            raise UsageError(f"{path}: slurm.{name}={getattr(slurm, name)!r}: expected one word")


def main(arguments: list[str]) -> int:
    """Submits, or with ``--dry-run`` prints, the batch script; returns the exit code."""
    return launch("slurm.py", "Submit a job to SLURM.", arguments, render, ["sbatch"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
