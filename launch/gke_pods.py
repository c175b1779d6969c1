"""The section ``[gke]`` of the settings, and its pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from settings import Job

CONTAINER = "unihetero"
_VOLUME = "shared"


@dataclass(frozen=True)
class Gke:
    """Section ``[gke]``: where to run.

    Attributes:
      cluster: name of the cluster.
      project: project of the cluster.
      zone: zone of the cluster.
      image: container image with this package.
      accelerator: node label of the accelerator.
      chips_per_host: chips per host.
      namespace: Kubernetes namespace.
      topology: topology of a TPU slice; empty for GPUs.
      xpk_type: xpk's name of the slice or device.
      slices: number of TPU slices.
      hosts: number of GPU hosts; 0 for TPUs.
      claim: PersistentVolumeClaim of a volume that many pods may write (ReadWriteMany).
      mount: path of the volume in every pod.
    """

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
    claim: str = ""
    mount: str = ""


def give_up(action: str) -> dict[str, Any]:
    """Return the policy that does not restart a pod that ended with a wrong loss (1) or config (2)."""
    codes = {"containerName": CONTAINER, "operator": "In", "values": [1, 2]}
    return {"rules": [{"action": action, "onExitCodes": codes}]}


def metadata(job: Job, gke: Gke) -> dict[str, Any]:
    """Return the metadata of the JobSet."""
    return {"name": job.name, "namespace": gke.namespace}


def container(job: Job, gke: Gke, arguments: list[str]) -> dict[str, Any]:
    """Return the container of ``unihetero ARGUMENTS`` on all chips of a host."""
    made = plain_container(job, gke, arguments)
    kind = "google.com/tpu" if gke.topology else "nvidia.com/gpu"
    return made | {"resources": {"limits": {kind: gke.chips_per_host}}}


def plain_container(job: Job, gke: Gke, arguments: list[str]) -> dict[str, Any]:
    """Return the container of ``unihetero ARGUMENTS`` without accelerator."""
    made: dict[str, Any] = {
        "name": CONTAINER,
        "image": gke.image,
        "command": ["python", "-u", "-m", "unihetero_jax", *arguments],
        "env": [{"name": name, "value": value} for name, value in job.environment.items()],
    }
    if gke.claim:
        made["volumeMounts"] = [{"name": _VOLUME, "mountPath": gke.mount}]
    return made


def pod(job: Job, gke: Gke, only: dict[str, Any], selected: bool = True) -> dict[str, Any]:
    """Return a pod with one container, on a host with the accelerator or, unless ``selected``, on any host."""
    made: dict[str, Any] = {
        # The Job or the JobSet restarts it, because other pods may have to restart with it.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace,
        "containers": [only],
    }
    if selected:
        made["nodeSelector"] = {"cloud.google.com/gke-accelerator": gke.accelerator}
    if selected and gke.topology:
        made["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": gke.accelerator,
            "cloud.google.com/gke-tpu-topology": gke.topology,
        }
    if gke.claim:
        made["volumes"] = [{"name": _VOLUME, "persistentVolumeClaim": {"claimName": gke.claim}}]
    return made
