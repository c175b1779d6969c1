"""Which processes a job has, from the variables that launchers set."""

from __future__ import annotations

import pytest

from unihetero_jax.errors import UsageError
from unihetero_jax.parallel import environment
from unihetero_jax.parallel.environment import Cluster, find, node_names

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08,10],login",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
NODES = ("gpu07", "gpu08", "gpu10", "login")


def test_nothing_in_the_environment_is_one_process():
    assert find({"JAX_PLATFORMS": "cpu"}) is None


def test_explicit_variables():
    assert find(EXPLICIT | SLURM) == Cluster("a:1", 4, 3)


def test_a_pod_of_an_indexed_job_is_numbered_by_kubernetes():
    pod = {name: value for name, value in EXPLICIT.items() if name != "JAX_PROCESS_ID"}
    assert find(pod | {"JOB_COMPLETION_INDEX": "2"}) == Cluster("a:1", 4, 2)


def test_a_slurm_task_a_node_has_all_of_its_devices():
    # The port is 61440 plus the job's number, which wraps at 4096.
    assert find(SLURM) == Cluster("gpu07:61441", 4, 2, None, NODES)
    assert find(SLURM | {"JAX_COORDINATOR_PORT": "1234"}) == Cluster("gpu07:1234", 4, 2, None, NODES)


def test_slurm_tasks_of_a_node_share_its_devices():
    shared = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_LOCALID": "1"}
    assert find(shared).devices == (2, 3)
    assert find(shared | {"SLURM_GPUS_PER_TASK": "2"}).devices is None
    assert find(shared | {"CUDA_VISIBLE_DEVICES": "5"}).devices is None
    with pytest.raises(UsageError, match="3 tasks cannot share 8 GPUs"):
        find(shared | {"SLURM_STEP_TASKS_PER_NODE": "3(x2)"})


def test_one_slurm_task_or_a_batch_script_without_srun_is_alone():
    assert find(SLURM | {"SLURM_NTASKS": "1"} | {"JAX_PLATFORMS": "cpu"}) is None
    batch = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    assert find(batch | {"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node001", ["node001"]),
        ("a,b", ["a", "b"]),
        ("n[1-2],m", ["n1", "n2", "m"]),
        ("n[008-010]", ["n008", "n009", "n010"]),
        ("rack[1-2]n[1,3]x", ["rack1n1x", "rack1n3x", "rack2n1x", "rack2n3x"]),
    ],
)
def test_node_lists(text, names):
    assert node_names(text) == names


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"JAX_PROCESS_ID": None}, ["JAX_PROCESS_ID is not", "JAX_NUM_PROCESSES"]),
        ({"JAX_PROCESS_ID": "4"}, ["JAX_PROCESS_ID=4", "0 to 3"]),
        ({"JAX_NUM_PROCESSES": "four"}, ["JAX_NUM_PROCESSES=four", "integer"]),
        ({"JAX_COORDINATOR_ADDRESS": "a"}, ["JAX_COORDINATOR_ADDRESS=a", "host:port"]),
        ({"JAX_COORDINATOR_ADDRESS": "", **SLURM, "SLURM_STEP_NODELIST": "a[1-2"}, ["a[1-2", "gpu[01-03"]),
        ({"JAX_COORDINATOR_ADDRESS": "", **SLURM, "SLURM_PROCID": None}, ["SLURM_PROCID", "srun"]),
    ],
)
def test_wrong_variables_are_named(variables, words):
    merged = {name: value for name, value in (EXPLICIT | variables).items() if value is not None}
    with pytest.raises(UsageError) as caught:
        find(merged)
    assert all(word in str(caught.value) for word in words)


def test_a_tpu_whose_neighbours_cannot_be_found_says_what_to_set(monkeypatch):
    from jax._src import clusters

    monkeypatch.setattr(environment, "_has_tpu", lambda variables: True)
    answers = iter([("w0:8482", 4, 1, None), ("w0:8482", 1, 0, None), (None, None, None, None)])
    detect = lambda *given: next(answers)  # noqa: E731
    monkeypatch.setattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params", detect)
    assert find({}) == Cluster("w0:8482", 4, 1)
    assert find({}) is None
    assert find({}) is None
    assert find({"JAX_PLATFORMS": "cpu"}) is None

    def fail(*given):
        raise RuntimeError("no metadata")

    monkeypatch.setattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params", fail)
    with pytest.raises(UsageError, match=r"no metadata.*JAX_PROCESS_ID.*TPU_SKIP_MDS_QUERY"):
        find({})
