"""Training runs as the person at the command line starts them, and what they leave to compare."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "fixtures" / "tiny.py"
LAUNCHER = ROOT / "launch" / "local.py"

# Compiling the tiny programs of the tests takes longer than they run. XLA up to jaxlib 0.10 compiles four times as fast
# with its older emitters, and as one module; later ones have no others.
QUICK_COMPILATION = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

# Far beyond what a run of the tests takes on a busy machine; reached only when something hangs.
PATIENCE_S = 300.0


def build_dataset(root: Path) -> Path:
    """The dataset of ``fixtures/tiny.py`` in ``root``, unless it is there; several processes may ask at once."""
    import dataclasses

    from unihetero_jax.config import loading as config_file
    from unihetero_jax.data.smart_watch.builder import build

    data = config_file.load(TINY, []).data
    build(root, image_size=data.image_size, **dataclasses.asdict(data.smart_watch), workers=1)
    return root


def environment(devices: int = 1, optimized: bool = False, **extra: str) -> dict[str, str]:
    """Of a run on some fake devices; ``optimized`` as outside of the tests, else compiled in a fraction of the time."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COORDINATOR")}
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    if not optimized:
        flags.append(QUICK_COMPILATION)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return values | {
        "PYTHONPATH": path,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        **extra,
    }


def train_command(workdir: Path, data: Path, *overrides: str, config: Path = TINY) -> list[str]:
    """The arguments of ``unihetero`` for a run on a shared dataset, with overrides such as ``train.steps=3``."""
    return [
        "train",
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.data.root={data}",
        "--config.logging.tensorboard=false",
        *(f"--config.{override}" for override in overrides),
    ]


def start(
    arguments: Sequence[str], devices: int = 1, log: Path | None = None, optimized: bool = False, cwd: Path = ROOT
) -> subprocess.Popen[str]:
    """``python -m unihetero_jax ARGUMENTS`` in a session of its own; its output goes to ``log``, else to a pipe."""
    with log.open("a") if log is not None else contextlib.nullcontext(subprocess.PIPE) as output:
        return subprocess.Popen(
            [sys.executable, "-m", "unihetero_jax", *arguments],
            cwd=cwd,
            env=environment(devices, optimized),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Waits for the end, checks the exit code, and returns the output."""
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"no end after {PATIENCE_S} s:\n{output}") from None
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output}"
    return output or ""


def launch(processes: int, devices: int, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """``launch/local.py`` with some processes of some fake devices each."""
    return subprocess.Popen(
        [sys.executable, str(LAUNCHER), f"--processes={processes}", f"--devices={devices}", "--", *arguments],
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(happened: Callable[[], Any], process: subprocess.Popen[str], poll_s: float = 0.005) -> Any:
    """The first true answer of ``happened``; None when the process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if answer := happened():
            return answer
        if process.poll() is not None:
            return None
        time.sleep(poll_s)
    raise TimeoutError("it did not happen")


def rows_written(workdir: Path) -> int:
    """Whole lines of ``metrics.jsonl``."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl`` without what came from the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "timing"} for row in rows]


def checkpoint_steps(workdir: Path) -> list[int]:
    """Names of the checkpoint directories that are numbers, ascending."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def saves_in_flight(workdir: Path) -> list[Path]:
    """Orbax's directories of unfinished saves."""
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def arrays(workdir: Path, step: int | None = None, items: Sequence[str] = ("state", "data")) -> dict[str, np.ndarray]:
    """Every array of a checkpoint (the newest by default) by its path, read by plain Orbax and none of our code."""
    import jax
    import orbax.checkpoint as ocp

    step = checkpoint_steps(workdir)[-1] if step is None else step
    found = {}
    for item in items:
        path = (workdir / "checkpoints" / str(step) / item).absolute()
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(path).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            stored = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        for key, leaf in jax.tree.leaves_with_path(stored):
            assert isinstance(leaf, np.ndarray | np.generic), f"{key}: {type(leaf)}"
            found[item + jax.tree_util.keystr(key)] = np.asarray(leaf)
    return found


def differing(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> list[str]:
    """Names whose arrays are not the same bit for bit, or that only one side has."""
    return [
        name
        for name in sorted(left.keys() | right.keys())
        if name not in left
        or name not in right
        or left[name].dtype != right[name].dtype
        or left[name].shape != right[name].shape
        or left[name].tobytes() != right[name].tobytes()
    ]


def assert_identical(workdir: Path, reference: Path) -> None:
    """Two finished runs have the same metrics and the same last checkpoint, bit for bit."""
    assert metrics(workdir) == metrics(reference)
    assert checkpoint_steps(workdir)[-1] == checkpoint_steps(reference)[-1]
    assert differing(arrays(workdir), arrays(reference)) == []


def start_and_make_a_step(
    arguments: Sequence[str], workdir: Path, log: Path | None = None, optimized: bool = True
) -> subprocess.Popen[str]:
    """Starts (or continues) a run and returns once it has made a step, or has ended."""
    path = workdir / "metrics.jsonl"
    directory = workdir / "checkpoints"
    changed = path.stat().st_mtime_ns if path.exists() else None
    restored = max(checkpoint_steps(workdir), default=0) if directory.is_dir() else 0
    process = start(arguments, log=log, optimized=optimized)
    # A continued run first cuts the file down to the rows of the checkpoint.
    wait_until(
        lambda: path.exists() and path.stat().st_mtime_ns != changed and rows_written(workdir) > restored, process
    )
    return process
