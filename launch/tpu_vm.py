"""Run one job on all workers of an existing TPU VM.

    python launch/tpu_vm.py --settings=settings.toml --dry-run

The script starts the same command on every worker over ``gcloud … ssh --worker=all`` and waits. When a worker ends with
exit code 75, or dies, it stops the others and starts all of them again.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from settings import Order, launch, read


@dataclass(frozen=True)
class TpuVm:
    """Section ``[tpu_vm]``: where to run.

    Attributes:
      tpu: name of the TPU VM.
      project: its project.
      zone: its zone.
      directory: the repository's directory on the workers.
      setup: lines of bash that make ``unihetero`` available.
    """

    tpu: str
    project: str
    zone: str
    directory: str
    setup: list[str] = field(default_factory=list)


def render(path: Path) -> Order:
    """Return the script of a settings file, for the machine that has ``gcloud``.

    Raises:
      UsageError: names the key and what was expected.
    """
    job, vm = read(path, "tpu_vm", TpuVm)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    # Not in /tmp, where others could leave a file that names a process of ours.
    pid = f'"$HOME/.unihetero/{job.name}-$(hostname).pid"'
    setup = "\n".join([f"cd {shlex.quote(vm.directory)} || exit 2", *vm.setup, *exports])
    ssh = shlex.join(
        ["gcloud", "compute", "tpus", "tpu-vm", "ssh", vm.tpu, f"--project={vm.project}", f"--zone={vm.zone}"]
    )
    script = f"""\
#!/usr/bin/env bash
set -uo pipefail

on_all_workers() {{
    {ssh} --worker=all --command="$1"
}}

# Each job has its own session, with its number in a file: the next start finds what a lost connection left running.
stop=$(cat <<'END_OF_STOP'
if [ -s {pid} ] && group=$(cat {pid}) && kill -TERM -- "-$group" 2>/dev/null; then
    for _ in $(seq {job.grace}); do
        kill -0 -- "-$group" 2>/dev/null || break
        sleep 1
    done
    kill -KILL -- "-$group" 2>/dev/null
fi
rm -f {pid}
END_OF_STOP
)
run=$(cat <<'END_OF_RUN'
{setup}
(umask 077 && mkdir -p "$HOME/.unihetero") || exit 2
setsid python -u -m unihetero_jax {shlex.join(job.arguments)} &
echo $! > {pid}
wait $!
code=$?
rm -f {pid}
exit $code
END_OF_RUN
)

# The same for all restarts: a run's lock is passed on at once.
id="{job.name}-$(date +%s)-$$"
trap 'on_all_workers "$stop"; exit 75' TERM INT
for ((restart = 0; ; restart++)); do
    on_all_workers "$stop"
    on_all_workers "export UNIHETERO_JOB=$id; $run" &
    wait $!
    code=$?
    # 1 and 2: the loss or the config is wrong, and would be again. 255: the connection was lost.
    if [ "$code" -le 2 ] || [ "$restart" -ge {job.restarts} ]; then exit "$code"; fi
    echo "exit code $code, restart $((restart + 1)) of {job.restarts}" >&2
done
"""
    return Order(script, ["bash"], "gcloud")


def main(arguments: list[str]) -> int:
    """Run, or with ``--dry-run`` print, the script; return the exit code."""
    return launch("tpu_vm.py", "Run a job on all workers of a TPU VM.", arguments, render)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
