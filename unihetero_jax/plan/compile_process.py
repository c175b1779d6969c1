"""Requests to the process that compiles; needs no JAX.

Compiling happens in a process of its own, ``plan.compile_worker``, so that its choice of platform, its memory and the
compiler's messages stay out of the caller's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unihetero_jax.plan.hardware import Hardware

# The compiled step's name, as ``train.step`` gives it.
_STEP = "jit_with_precision"
# In front of each answer on stdout, because libtpu writes lines of its own there.
ANSWER = "unihetero-plan: "


@dataclass(frozen=True)
class Request:
    """A step to compile, estimate or measure.

    Attributes:
      config: the run's configuration as nested dicts.
      vocabulary: number of token ids.
      hardware: the hardware to plan for.
      mode: ``compile`` the step ahead of time, ``estimate`` it by formula, or ``measure`` it on the worker's devices.
    """

    config: dict[str, Any]
    vocabulary: int
    hardware: Hardware
    mode: Literal["compile", "estimate", "measure"] = "compile"


def ask(requests: Sequence[Request]) -> Iterator[dict[str, Any]]:
    """Start the process that compiles, and yield its answers as they come.

    Args:
      requests: requests for the same hardware.

    Raises:
      RuntimeError: the process ended without an answer; the message has the last lines of its log.
    """
    with tempfile.TemporaryDirectory(prefix="unihetero-plan-") as folder:
        path, log, programs = (Path(folder) / name for name in ("requests.json", "log", "programs"))
        programs.mkdir()
        path.write_text(json.dumps([dataclasses.asdict(request) for request in requests]), encoding="utf-8")
        command = [sys.executable, "-m", "unihetero_jax.plan.compile_worker", str(path), str(programs)]
        count = 0
        with (
            log.open("w", encoding="utf-8") as messages,
            subprocess.Popen(
                command,
                env=_environment(requests[0].hardware, programs),
                # Nothing is written to it. It closes when this process ends, however it does, and the worker ends then.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.startswith(ANSWER):
                        count += 1
                        yield json.loads(line.removeprefix(ANSWER))
            finally:
                process.kill()
        if count < len(requests):
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            raise RuntimeError("\n".join(["the process that compiles ended without an answer:", *last]))


def _environment(hardware: Hardware, programs: Path) -> dict[str, str]:
    """Return the worker's environment: JAX on the CPU, with a fake device per chip where the chips are CPUs.

    Args:
      hardware: the hardware to compile for.
      programs: folder where the compiler leaves its programs.
    """
    # Without the first, libtpu asks the metadata server of a cloud machine who it is, and waits for the answer; without
    # the second, two plans at a time refuse each other.
    variables = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    count = hardware.chips if hardware.chip.platform != "tpu" else 1
    others = [flag for flag in variables.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    dump = [f"--xla_dump_to={programs}", "--xla_dump_hlo_as_text=true", f"--xla_dump_hlo_module_re={_STEP}"]
    variables["XLA_FLAGS"] = " ".join([*others, *dump, f"--xla_force_host_platform_device_count={count}"])
    return variables
