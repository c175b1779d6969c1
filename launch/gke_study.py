"""A study on GKE: one JobSet, whose runs are the pods of an indexed Job.

It has three Jobs. ``prepare`` makes what the runs share. ``runs`` begins when that is complete, with one pod per run;
each pod is started again by itself after exit code 75, a lost node or a killed process. ``report`` writes the report as
results come, without an accelerator. The JobSet is complete when every run is; it has failed when a run has failed for
good (exit code 1 or 2, or too many starts) and the others have ended. Either way it then ends ``report``, which writes
a last time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gke_pods import Gke, container, give_up, metadata, plain_container, pod
from settings import Job
from study_array import Array

from unihetero_jax.errors import UsageError

_PREPARE, _RUNS, _REPORT = "prepare", "runs", "report"


def check(path: Path, gke: Gke, hosts: int) -> None:
    """Check the settings that a study needs.

    Args:
      path: the settings file, for messages.
      gke: its section ``[gke]``.
      hosts: number of hosts of one slice.

    Raises:
      UsageError: names the key and what was expected.
    """
    if hosts * gke.slices > 1:
        asked = f"topology={gke.topology!r}" if gke.topology else f"hosts={gke.hosts}"
        raise UsageError(
            f"{path}: gke.{asked} with gke.chips_per_host={gke.chips_per_host} and gke.slices={gke.slices}: expected "
            "one host for each run of a study; for runs on several hosts use launch/slurm.py"
        )
    if not gke.claim:
        raise UsageError(
            f"{path}: gke.claim is missing: expected a volume that all pods of a study write, with its mount"
        )


def manifest(job: Job, gke: Gke, runs: Array) -> dict[str, Any]:
    """Return the JobSet (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2) and its Jobs.

    The Jobs limit the starts of each index, which needs Kubernetes 1.29
    (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1).
    """
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata(job, gke),
        "spec": {
            # The Jobs restart their pods: a restart of the whole set would stop the healthy runs.
            "failurePolicy": {"maxRestarts": 0},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": [_RUNS]},
            "replicatedJobs": [
                {"name": _PREPARE, "template": {"spec": _prepare(job, gke, runs)}},
                {"name": _RUNS, "dependsOn": _prepared(), "template": {"spec": _runs(job, gke, runs)}},
                {"name": _REPORT, "dependsOn": _prepared(), "template": {"spec": _report(job, gke, runs)}},
            ],
        },
    }


def _prepared() -> list[dict[str, str]]:
    return [{"name": _PREPARE, "status": "Complete"}]


def _prepare(job: Job, gke: Gke, runs: Array) -> dict[str, Any]:
    return {
        "backoffLimit": job.restarts,
        "podFailurePolicy": give_up("FailJob"),
        "template": {"spec": pod(job, gke, container(job, gke, runs.prepare))},
    }


def _runs(job: Job, gke: Gke, runs: Array) -> dict[str, Any]:
    # Kubernetes replaces the variable by its value before the process starts.
    arguments = [*runs.run, "--index=$(JOB_COMPLETION_INDEX)"]
    return {
        "completionMode": "Indexed",
        "completions": runs.count,
        "parallelism": min(job.at_once, runs.count) or runs.count,
        "backoffLimitPerIndex": job.restarts,
        "podFailurePolicy": give_up("FailIndex"),
        "template": {"spec": pod(job, gke, container(job, gke, arguments))},
    }


def _report(job: Job, gke: Gke, runs: Array) -> dict[str, Any]:
    only = plain_container(job, gke, [*runs.report, "--follow"])
    return {
        "backoffLimit": job.restarts,
        "template": {"spec": pod(job, gke, only, selected=False)},
    }
