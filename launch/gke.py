"""Start one job on GKE, as a JobSet; or a study, as one JobSet with one pod per run.

    python launch/gke.py --settings=settings.toml --dry-run

The manifest begins with the xpk command that does the same. JobSet restarts the job after exit code 75, a lost node or
a killed process; a wrong config (exit code 2) or loss (1) ends it. ``gke_study`` makes a study's manifest.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import gke_study
import yaml
from gke_pods import Gke, container, give_up, metadata, pod
from settings import Job, Order, launch, read
from study_array import array

from unihetero_jax.errors import UsageError

_PORT = 8476
_WORKERS = "workers"
# The JobSet's, the same for pods that it starts again; empty where its controller does not set it.
_UID = "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"
_TOPOLOGY = re.compile(r"\d+x\d+(x\d+)?")


def render(path: Path) -> Order:
    """Return the YAML manifest of a settings file; a training's comes below the xpk command.

    Raises:
      UsageError: names the key and what was expected.
    """
    job, gke = read(path, "gke", Gke)
    hosts = _hosts(path, gke)
    runs = array(path, job)
    if runs is None:
        made, above = manifest(job, gke, hosts), f"# With xpk:\n# {xpk(job, gke, hosts)}\n"
    else:
        gke_study.check(path, gke, hosts)
        made, above = gke_study.manifest(job, gke, runs), ""
    text = yaml.safe_dump(made, sort_keys=False, width=1000)
    return Order(above + text, ["kubectl", "apply", "-f", "-"], "kubectl")


def manifest(job: Job, gke: Gke, hosts: int) -> dict[str, Any]:
    """Return the JobSet (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2)."""
    worker = container(job, gke, job.arguments)
    # Restarted pods take over their run's lock at once.
    worker["env"].append({"name": "UNIHETERO_JOB", "valueFrom": {"fieldRef": {"fieldPath": _UID}}})
    worker["env"] += _rendezvous(job, gke, hosts)
    worker["ports"] = [{"containerPort": _PORT}]
    work = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": give_up("FailJob"),
        "template": {"spec": pod(job, gke, worker)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        # One slice is one node pool, which no two jobs share.
        "metadata": metadata(job, gke)
        | {"annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}},
        "spec": {
            # Hosts resolve the first one's name before it is ready.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": _WORKERS, "replicas": gke.slices, "template": {"spec": work}}],
        },
    }


def xpk(job: Job, gke: Gke, hosts: int) -> str:
    """Return the command line of xpk (https://github.com/AI-Hypercomputer/xpk) that starts the same job."""
    what = (
        [f"--tpu-type={gke.xpk_type}", f"--num-slices={gke.slices}"]
        if gke.topology
        else [f"--device-type={gke.xpk_type}", f"--num-nodes={hosts}"]
    )
    return shlex.join(
        [
            *(
                "xpk",
                "workload",
                "create",
                f"--cluster={gke.cluster}",
                f"--project={gke.project}",
                f"--zone={gke.zone}",
            ),
            *(f"--workload={job.name}", *what, f"--docker-image={gke.image}", f"--max-restarts={job.restarts}"),
            *(f"--env={name}={value}" for name, value in job.environment.items()),
            f"--command=python -u -m unihetero_jax {shlex.join(job.arguments)}",
        ]
    )


def _rendezvous(job: Job, gke: Gke, hosts: int) -> list[dict[str, Any]]:
    """Return the variables of JAX's rendezvous for GPU hosts; GKE sets those of TPU hosts."""
    if gke.topology:
        return []
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{job.name}-{_WORKERS}-0-0.{job.name}:{_PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(hosts)},
        {"name": "JAX_PROCESS_ID", "valueFrom": index},
    ]


def _hosts(path: Path, gke: Gke) -> int:
    """Check the section; return the number of hosts of one slice."""
    if bool(gke.claim) != bool(gke.mount):
        raise UsageError(f"{path}: gke.claim={gke.claim!r} and gke.mount={gke.mount!r}: expected both or none")
    for name in ("chips_per_host", "slices"):
        if not getattr(gke, name):
            raise UsageError(f"{path}: gke.{name}=0: expected an integer above 0")
    if bool(gke.topology) == bool(gke.hosts):
        raise UsageError(
            f"{path}: gke.topology={gke.topology!r} and gke.hosts={gke.hosts}: expected a topology for TPU, or hosts "
            "for GPU, and not both"
        )
    if not gke.topology:
        if gke.slices != 1:
            raise UsageError(f"{path}: gke.slices={gke.slices}: expected 1 for GPU; hosts says how many there are")
        return gke.hosts
    if not _TOPOLOGY.fullmatch(gke.topology):
        raise UsageError(f"{path}: gke.topology={gke.topology!r}: expected chips along each side, such as '4x8x8'")
    chips = math.prod(map(int, gke.topology.split("x")))
    if not chips or chips % gke.chips_per_host:
        raise UsageError(
            f"{path}: gke.chips_per_host={gke.chips_per_host} does not divide the {chips} chips of gke.topology="
            f"{gke.topology!r}"
        )
    return chips // gke.chips_per_host


def main(arguments: list[str]) -> int:
    """Apply, or with ``--dry-run`` print, the manifest; return the exit code."""
    return launch("gke.py", "Start a job, or a study, on GKE.", arguments, render)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
