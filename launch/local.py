"""Start one job as several processes on this machine.

    python launch/local.py --processes=2 --devices=4 -- train --config=configs/quickstart.py --workdir=runs/two

The arguments after ``--`` go to ``unihetero``. With ``--platform=cpu`` (the default) ``--devices`` counts the fake
devices of each process; with ``--platform=gpu`` its GPUs. Each line of output starts with the number of the process
that wrote it. When a process fails the others are stopped, and the exit code is that of the first that failed. SIGTERM
and SIGINT are passed on to all processes; when the launcher dies, they die.

With ``--restarts=N`` a job is started again, up to N times, when it ends with exit code 75 (saved, or hung) or one of
its processes is killed; the run then continues from its newest checkpoint. After a signal to the launcher it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, NoReturn

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05
_TEMPORARY = 75  # EX_TEMPFAIL, with which `unihetero` asks to be started again


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"local.py: error: {message} (see local.py --help)", file=sys.stderr)
        raise SystemExit(2)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer above 0")
    return int(text)


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, 0 or more")
    return seconds


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    ours, dashes, theirs = list(arguments), False, list[str]()
    if "--" in ours:
        dashes = True
        ours, theirs = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    summary, _, _ = (__doc__ or "").partition("\n")
    parser = _Parser(
        prog="local.py",
        usage="local.py [-h] --processes=N [--devices=M] [--platform={cpu,gpu}] [--grace=SECONDS] [--restarts=N] "
        "-- VERB ...",
        description=summary,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=_count, required=True, metavar="N", help="number of processes")
    parser.add_argument("--devices", type=_count, default=1, metavar="M", help="devices per process (default: 1)")
    parser.add_argument(
        "--platform",
        choices=("cpu", "gpu"),
        default="cpu",
        help="cpu: fake devices; gpu: process i gets the devices from i·M (default: cpu)",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="between SIGTERM and SIGKILL for the others when a process fails (default: 10)",
    )
    parser.add_argument(
        "--restarts",
        type=_count_or_none,
        default=0,
        metavar="N",
        help="how often to start again after exit code 75 or the death of a process (default: 0)",
    )
    options = parser.parse_args(ours)
    if not dashes or not theirs:
        parser.error("nothing to start: expected -- and the arguments of unihetero, as in -- train --config=…")
    return options, theirs


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(options: argparse.Namespace, number: int, port: int) -> dict[str, str]:
    values = dict(os.environ)
    values["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    # The same for all restarts: a run's lock is passed on at once.
    values.setdefault("UNIHETERO_JOB", os.environ.get("SLURM_JOB_ID") or f"local-{socket.gethostname()}-{os.getpid()}")
    values["JAX_NUM_PROCESSES"] = str(options.processes)
    values["JAX_PROCESS_ID"] = str(number)
    if options.platform == "cpu":
        kept = [flag for flag in values.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
        values["XLA_FLAGS"] = " ".join([*kept, f"--xla_force_host_platform_device_count={options.devices}"])
        values["JAX_PLATFORMS"] = "cpu"
    else:
        first = number * options.devices
        values["CUDA_VISIBLE_DEVICES"] = ",".join(str(first + device) for device in range(options.devices))
    return values


def _die_with(parent: int, libc: ctypes.CDLL | None) -> None:
    """In the child, have the kernel kill it when the launcher dies, even by SIGKILL."""
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the launcher died before the call
            os._exit(1)


def _start(options: argparse.Namespace, arguments: Sequence[str], number: int, port: int) -> subprocess.Popen[str]:
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return subprocess.Popen(
        [sys.executable, "-m", "unihetero_jax", *arguments],
        env=_environment(options, number, port),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # A session of its own: Ctrl-C reaches it once, through the launcher, and what it starts can be killed with it.
        start_new_session=True,
        preexec_fn=lambda: _die_with(parent, libc),
    )


def _copy_lines(source: IO[str], target: IO[str], number: int) -> None:
    for line in source:
        target.write(f"[{number}] {line}" if line.endswith("\n") else f"[{number}] {line}\n")
        target.flush()


def _send(process: subprocess.Popen[str], number: int, whole_session: bool = False) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if whole_session else os.kill)(process.pid, number)


def _wait(processes: Sequence[subprocess.Popen[str]], grace: float) -> int:
    """Wait until all processes have ended; return the exit code of the first that failed, else 0."""
    code, deadline = 0, float("inf")
    while None in (codes := [process.poll() for process in processes]):
        failed = [found for found in codes if found]
        if failed and not code:
            code, deadline = failed[0], time.monotonic() + grace
            for process in processes:
                _send(process, signal.SIGTERM)
        if time.monotonic() > deadline:
            for process in processes:
                _send(process, signal.SIGKILL, whole_session=True)
        time.sleep(_POLL_S)
    code = code or next((process.returncode for process in processes if process.returncode), 0)
    return code if code >= 0 else 128 - code


class _Launcher:
    """The processes of the current start, and the signals received for them."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._signals: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    @property
    def stopped(self) -> bool:
        return bool(self._signals)

    def run(self, options: argparse.Namespace, rest: Sequence[str]) -> int:
        """Start the job once; return its exit code."""
        self._processes = []
        port = _free_port()
        for index in range(options.processes):
            self._processes.append(_start(options, rest, index, port))
        if self._signals:  # one came before all of them had started
            for process in self._processes:
                _send(process, self._signals[-1])
        copiers = []
        for index, process in enumerate(self._processes):
            assert process.stdout is not None
            assert process.stderr is not None
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                copier = threading.Thread(target=_copy_lines, args=(source, target, index), daemon=True)
                copier.start()
                copiers.append(copier)
        code = _wait(self._processes, options.grace)
        for copier in copiers:
            copier.join(timeout=5.0)  # a grandchild may hold the pipe open
        return code

    def _pass_on(self, number: int, frame: object) -> None:
        del frame
        self._signals.append(number)
        for process in self._processes:
            _send(process, number)


def main(arguments: Sequence[str]) -> int:
    """Run a job; return its exit code."""
    options, rest = _options(arguments)
    launcher = _Launcher()
    for restart in range(options.restarts + 1):
        code = launcher.run(options, rest)
        another = code == _TEMPORARY or code > 128
        if not another or launcher.stopped or restart == options.restarts:
            break
        print(f"local.py: exit code {code}, restart {restart + 1} of {options.restarts}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
