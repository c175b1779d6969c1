"""Starts one job on GKE, as a JobSet.

    python launch/gke.py --settings=settings.toml --dry-run

The manifest begins with the xpk command that does the same. JobSet starts the job again after exit code 75, a lost node
or a killed process; a wrong config (exit code 2) or loss (1) ends it.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from settings import Job, launch, read

from unihetero_jax.errors import UsageError

_PORT = 8476
_CONTAINER = "unihetero"
_WORKERS = "workers"
_TOPOLOGY = re.compile(r"\d+x\d+(x\d+)?")


@dataclass(frozen=True)
class Gke:
    """Section ``[gke]``. A TPU slice has a ``topology``; GPU ``hosts`` are counted."""

    cluster: str
    project: str
    zone: str
    image: str
    accelerator: str
    chips_per_host: int
    namespace: str = "default"
    topology: str = ""
    xpk_type: str = ""
    slices: int = 1
    hosts: int = 0


def render(path: Path) -> str:
    """The manifest of a settings file, YAML, below the xpk command.

    Raises:
      UsageError: naming the key and what was expected.
    """
    job, gke = read(path, "gke", Gke)
    hosts = _hosts(path, gke)
    text = yaml.safe_dump(manifest(job, gke, hosts), sort_keys=False, width=1000)
    return f"# With xpk:\n# {xpk(job, gke, hosts)}\n{text}"


def manifest(job: Job, gke: Gke, hosts: int) -> dict[str, Any]:
    """The JobSet (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2)."""
    kind = "google.com/tpu" if gke.topology else "nvidia.com/gpu"
    selector = {"cloud.google.com/gke-accelerator": gke.accelerator}
    if gke.topology:
        selector = {
            "cloud.google.com/gke-tpu-accelerator": gke.accelerator,
            "cloud.google.com/gke-tpu-topology": gke.topology,
        }
    container = {
        "name": _CONTAINER,
        "image": gke.image,
        "command": ["python", "-u", "-m", "unihetero_jax", *job.arguments],
        "env": [{"name": name, "value": value} for name, value in job.environment.items()]
        + _rendezvous(job, gke, hosts),
        "ports": [{"containerPort": _PORT}],
        "resources": {"limits": {kind: gke.chips_per_host}},
    }
    pod = {
        # A container that starts again by itself would be alone; JobSet starts all of them.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace,
        "nodeSelector": selector,
        "containers": [container],
    }
    hopeless = {"containerName": _CONTAINER, "operator": "In", "values": [1, 2]}
    work = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": hopeless}]},
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": gke.namespace,
            # One slice is one node pool, and no two jobs share it.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            # A host asks for the first one by name before that is ready.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": _WORKERS, "replicas": gke.slices, "template": {"spec": work}}],
        },
    }


def xpk(job: Job, gke: Gke, hosts: int) -> str:
    """The command line of xpk (https://github.com/AI-Hypercomputer/xpk) that starts the same job."""
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
    """Where GPU hosts meet; TPU hosts are told by GKE."""
    if gke.topology:
        return []
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{job.name}-{_WORKERS}-0-0.{job.name}:{_PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(hosts)},
        {"name": "JAX_PROCESS_ID", "valueFrom": index},
    ]


def _hosts(path: Path, gke: Gke) -> int:
    """Of one slice."""
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
    """Applies, or with ``--dry-run`` prints, the manifest; returns the exit code."""
    return launch("gke.py", "Start a job on GKE.", arguments, render, ["kubectl", "apply", "-f", "-"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
