"""The section ``[gke]`` of the settings, and the pods that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from settings import Job

CONTAINER = "unihetero"
_VOLUME = "shared"


@dataclass(frozen=True)
class Gke:
    """Section ``[gke]``. A TPU slice has a ``topology``; GPU ``hosts`` are counted.

    ``claim``: of a volume that many pods may write (ReadWriteMany); ``mount``: where all of them have it.
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
    """The policy that does not start again what ended with a wrong loss (1) or config (2)."""
    codes = {"containerName": CONTAINER, "operator": "In", "values": [1, 2]}
    return {"rules": [{"action": action, "onExitCodes": codes}]}


def metadata(job: Job, gke: Gke) -> dict[str, Any]:
    """Of the JobSet."""
    return {"name": job.name, "namespace": gke.namespace}


def container(job: Job, gke: Gke, arguments: list[str]) -> dict[str, Any]:
    """``unihetero ARGUMENTS`` on all chips of a host."""
    made = plain_container(job, gke, arguments)
    kind = "google.com/tpu" if gke.topology else "nvidia.com/gpu"
    return made | {"resources": {"limits": {kind: gke.chips_per_host}}}


def plain_container(job: Job, gke: Gke, arguments: list[str]) -> dict[str, Any]:
    """``unihetero ARGUMENTS`` without accelerator."""
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
    """A pod with one container, on a host with the accelerator or, unless ``selected``, on any."""
    made: dict[str, Any] = {
        # What starts it again is the Job or the JobSet, which know what else has to be.
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
