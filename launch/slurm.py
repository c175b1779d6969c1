"""Submit one job to SLURM, as a batch script that requeues itself; or a study, as a job array.

    python launch/slurm.py --settings=settings.toml --dry-run

The script asks for SIGTERM some time before its time limit; the run saves and exits with code 75, and is requeued, as
it is when a process was killed. A wrong config (exit code 2) or loss (1) is not tried again.

For a study (``job.arguments`` are ``study run …``) three jobs are submitted, each after the one before: what its runs
share; a job array with one task per run, each requeued by itself; and the report, however the runs have ended. A run
has ``nodes`` nodes; with one node and several ``tasks_per_node``, that many runs share it.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from settings import Job, Order, launch, read
from study_array import Array, array

from unihetero_jax.errors import UsageError

_TIME = re.compile(r"(\d+-)?\d{1,2}:\d{2}:\d{2}|\d+")
_WORD = re.compile(r"[\w.,:&|()\[\]*-]*")


@dataclass(frozen=True)
class Slurm:
    """Section ``[slurm]``: the resources to ask for.

    Attributes:
      nodes: number of nodes.
      gpus_per_node: GPUs per node.
      cpus_per_node: CPU cores per node.
      time: time limit, as SLURM writes it.
      directory: the repository's directory on the nodes.
      partition: name of the partition; empty: the cluster's default.
      account: name of the account; empty: the user's default.
      qos: quality of service; empty: the default.
      constraint: features that the nodes must have; empty: none.
      tasks_per_node: processes per node, which share its GPUs.
      setup: lines of bash that make ``unihetero`` available.
    """

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


def render(path: Path) -> Order:
    """Return the batch script of a settings file; for a study the script that submits its three batch scripts.

    Raises:
      UsageError: names the key and what was expected.
    """
    job, slurm = read(path, "slurm", Slurm)
    _check(path, slurm)
    runs = array(path, job)
    if runs is None:
        return Order(_batch(job, slurm, _srun(slurm, job.arguments)), ["sbatch"], "sbatch")
    if slurm.nodes > 1 and slurm.tasks_per_node > 1:
        raise UsageError(
            f"{path}: slurm.nodes={slurm.nodes} and slurm.tasks_per_node={slurm.tasks_per_node}: expected one of "
            "them to be 1 for a study, whose runs have their own nodes or share one"
        )
    return Order(_submission(job, slurm, runs), ["bash"], "sbatch")


def _submission(job: Job, slurm: Slurm, runs: Array) -> str:
    """Return the script that submits a study's three batch scripts."""
    shared = slurm.tasks_per_node
    # A run's share of a node. The other two jobs ask for as much: where runs are admitted, these are too.
    gpus, cpus = slurm.gpus_per_node // shared, slurm.cpus_per_node // shared
    alone = dataclasses.replace(slurm, nodes=1, tasks_per_node=1, gpus_per_node=gpus, cpus_per_node=cpus)
    last = (runs.count - 1) // shared
    tasks = f"0-{last}%{job.at_once}" if job.at_once else f"0-{last}"
    index = '--index="$SLURM_ARRAY_TASK_ID"'
    srun = _srun(slurm, runs.run, index) if shared == 1 else _srun_side_by_side(slurm, runs)
    prepare, report = (
        _batch(dataclasses.replace(job, name=f"{job.name}-{name}"), alone, _srun(alone, arguments))
        for name, arguments in (("prepare", runs.prepare), ("report", runs.report))
    )
    return f"""\
#!/usr/bin/env bash
set -euo pipefail

# What the runs of the study share.
prepare=$(sbatch --parsable <<'END_OF_PREPARE'
{prepare}END_OF_PREPARE
)
# Its {runs.count} runs; none of them when the shared parts could not be made.
runs=$(sbatch --parsable --dependency="afterok:${{prepare%%;*}}" --kill-on-invalid-dep=yes <<'END_OF_RUNS'
{_batch(job, slurm, srun, tasks)}END_OF_RUNS
)
# The report, however they have ended.
report=$(sbatch --parsable --dependency="afterany:${{runs%%;*}}" <<'END_OF_REPORT'
{report}END_OF_REPORT
)
echo "submitted: shared parts ${{prepare%%;*}}, runs ${{runs%%;*}}_[{tasks}], report ${{report%%;*}}"
"""


def _batch(job: Job, slurm: Slurm, srun: list[str], array: str = "") -> str:
    """Return a batch script: the resources, the command, and when to requeue it."""
    gpus, tasks = slurm.gpus_per_node, slurm.tasks_per_node
    asked = {
        "job-name": job.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": slurm.cpus_per_node // tasks,
        # Tasks that share a node get GPUs of their own; without this JAX would give each of them all.
        **({"gpus-per-node": gpus} if tasks == 1 and gpus else {}),
        **({"gpus-per-task": gpus // tasks} if tasks > 1 and gpus else {}),
        "time": slurm.time,
        # Without "B:" the signal goes to the processes and not to the script, which has to requeue the job.
        "signal": f"TERM@{job.grace}",
        "output": f"{job.name}-%A_%a.out" if array else f"{job.name}-%j.out",
        "open-mode": "append",
        "array": array,
        **{name: getattr(slurm, name) for name in ("partition", "account", "qos", "constraint")},
    }
    header = [f"#SBATCH --{name}={value}" for name, value in asked.items() if value != ""]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    # The job id of a task may be that of the whole array.
    number = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "$SLURM_JOB_ID"
    lines = [
        "#!/usr/bin/env bash",
        *header,
        "#SBATCH --requeue",
        "set -uo pipefail",
        f"cd {shlex.quote(slurm.directory)} || exit 2",
        *slurm.setup,
        *exports,
        "",
        *srun,
        "code=$?",
        "",
        "# 75: saved, or hung. Above 128: a process was killed, which aborts the others.",
        "restarts=${SLURM_RESTART_COUNT:-0}",
        f'if {{ [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; }} && [ "$restarts" -lt {job.restarts} ]; then',
        f'    echo "exit code $code, restart $((restarts + 1)) of {job.restarts}"',
        f'    scontrol requeue "{number}" && exit 0',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _srun(slurm: Slurm, arguments: list[str], more: str = "") -> list[str]:
    command = f"python -u -m unihetero_jax {shlex.join(arguments)} {more}".rstrip()
    # Since SLURM 22.05 a step does not inherit the job's cores.
    cores = slurm.cpus_per_node // slurm.tasks_per_node
    return [
        "# A process that fails ends the others; those of a hung step end by themselves.",
        f"srun --kill-on-bad-exit=1 --cpus-per-task={cores} {command}",
    ]


def _srun_side_by_side(slurm: Slurm, runs: Array) -> list[str]:
    """Return the step of one run per task of a node; with ``SLURM_NTASKS=1`` each is a run of one process."""
    shared = slurm.tasks_per_node
    each = (
        f"index=$((SLURM_ARRAY_TASK_ID * {shared} + SLURM_PROCID))\n"
        f'[ "$index" -lt {runs.count} ] || exit 0\n'
        f'SLURM_NTASKS=1 exec python -u -m unihetero_jax {shlex.join(runs.run)} --index="$index"'
    )
    cores = slurm.cpus_per_node // shared
    return [
        "# These runs share only the node: none of them ends another.",
        f"srun --kill-on-bad-exit=0 --wait=0 --cpus-per-task={cores} bash -c {shlex.quote(each)}",
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
    """Submit, or with ``--dry-run`` print, the batch script; return the exit code."""
    return launch("slurm.py", "Submit a job, or a study, to SLURM.", arguments, render)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
