"""The processes of a job, read from the environment that its launcher sets.

Explicit variables win; then SLURM's; on a TPU, what JAX detects (the variables of GKE, the metadata server of a TPU
VM). Otherwise the process is alone.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from unihetero_jax.errors import UsageError

ADDRESS, COUNT, NUMBER = _VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PORT = "JAX_COORDINATOR_PORT"
# Set in each pod of an indexed Job of Kubernetes, and so of a JobSet.
_POD = "JOB_COMPLETION_INDEX"
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


@dataclass(frozen=True)
class Cluster:
    """The processes of a job, and which of them this one is.

    Attributes:
      address: host:port of the coordinator, process 0.
      count: number of processes.
      number: index of this process.
      devices: local accelerators of this process; None: all.
      hosts: host names of the job, where the environment has them, to name a missing one.
    """

    address: str
    count: int
    number: int
    devices: tuple[int, ...] | None = None
    hosts: tuple[str, ...] = ()


def find(variables: Mapping[str, str] = os.environ) -> Cluster | None:
    """Find the job that this process belongs to; None when it is alone.

    Args:
      variables: the environment.

    Raises:
      UsageError: variables are missing or contradict each other, or the other hosts of a TPU cannot be found.
    """
    if variables.get(ADDRESS):
        return _explicit(variables)
    if "SLURM_STEP_NODELIST" in variables and variables.get("SLURM_NTASKS", "1") != "1":
        return _slurm(variables)
    if variables.get("JAX_PLATFORMS", "").split(",")[0] not in ("cpu", "cuda") and _has_tpu(variables):
        return _tpu()
    return None


def _explicit(variables: Mapping[str, str]) -> Cluster:
    number_from = NUMBER if NUMBER in variables or _POD not in variables else _POD
    for name in (COUNT, number_from):
        if name not in variables:
            raise UsageError(f"{ADDRESS} is set, {name} is not: expected all of {', '.join(_VARIABLES)}")
    address = variables[ADDRESS]
    if not re.fullmatch(r".+:\d+", address):
        raise UsageError(f"{ADDRESS}={address}: expected host:port")
    return _checked(address, _integer(variables, COUNT), _integer(variables, number_from), (COUNT, number_from))


def _slurm(variables: Mapping[str, str]) -> Cluster:
    """Read what ``srun`` sets (https://slurm.schedmd.com/srun.html, output environment variables).

    JAX reads these too, but assumes one device per process: a process with a node's eight GPUs would get only the
    first of them.
    """
    for name in ("SLURM_PROCID", "SLURM_JOB_ID"):
        if name not in variables:
            raise UsageError(f"SLURM_NTASKS is set, {name} is not: start the processes with srun")
    hosts = node_names(variables["SLURM_STEP_NODELIST"])
    # Jobs that share a node need different ports; other programs may use those below 61440.
    port = variables.get(_PORT) or str(61440 + _integer(variables, "SLURM_JOB_ID") % 4096)
    found = _checked(
        f"{hosts[0]}:{port}",
        _integer(variables, "SLURM_NTASKS"),
        _integer(variables, "SLURM_PROCID"),
        ("SLURM_NTASKS", "SLURM_PROCID"),
    )
    return Cluster(found.address, found.count, found.number, _share_of_node(variables), tuple(hosts))


def _share_of_node(variables: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return this task's share of a node's GPUs where all tasks see all of them; None where each has its own."""
    tasks = re.match(r"\d+", variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
    visible = len([name for name in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if name])
    if tasks is None or "SLURM_GPUS_PER_TASK" in variables:
        return None
    here, local = int(tasks[0]), _integer(variables, "SLURM_LOCALID")
    if here == 1 or visible < here:
        return None
    if visible % here:
        raise UsageError(
            f"SLURM_STEP_TASKS_PER_NODE={variables['SLURM_STEP_TASKS_PER_NODE']}: {here} tasks cannot share {visible} "
            "GPUs evenly; use one task per node, or as many as there are GPUs"
        )
    return tuple(range(local * visible // here, (local + 1) * visible // here))


def node_names(text: str) -> list[str]:
    """Expand a SLURM list of nodes such as ``gpu[01-03,7],login``, in its order.

    Raises:
      UsageError: brackets do not match.
    """
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for literal, inside in re.findall(r"([^\[\]]+)|\[([^\[\]]+)\]", part):
            choices = [literal] if literal else [name for piece in inside.split(",") for name in _numbers(piece)]
            names = [name + choice for name in names for choice in choices]
        found += names
    if not found or text.count("[") != text.count("]"):
        raise UsageError(f"SLURM_STEP_NODELIST={text}: expected names such as gpu[01-03,7],login")
    return found


def _numbers(piece: str) -> list[str]:
    first, dash, last = piece.partition("-")
    if not dash:
        return [first]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _has_tpu(variables: Mapping[str, str]) -> bool:
    # Without the metadata server and GKE's variables, a TPU host is alone.
    if "TPU_SKIP_MDS_QUERY" in variables and not {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & variables.keys():
        return False
    return any(map(os.path.exists, _TPU_DEVICES)) and importlib.util.find_spec("libtpu") is not None


def _tpu() -> Cluster | None:
    # JAX passes what it detects only to its own `initialize`, which does not name missing hosts.
    from jax._src import clusters

    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"the other hosts of this TPU cannot be found: {error}; set {', '.join(_VARIABLES)}, or "
            "TPU_SKIP_MDS_QUERY=1 where it is alone"
        ) from error
    address, count, number, _ = found
    if address is None or count is None or number is None or count == 1:
        return None
    return Cluster(address, count, number)


def _checked(address: str, count: int, number: int, names: tuple[str, str]) -> Cluster:
    if not 0 <= number < count:
        raise UsageError(f"{names[1]}={number}: expected 0 to {count - 1} ({names[0]}={count})")
    return Cluster(address, count, number)


def _integer(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name, "")
    if not text.isdecimal():
        raise UsageError(f"{name}={text}: expected an integer")
    return int(text)
