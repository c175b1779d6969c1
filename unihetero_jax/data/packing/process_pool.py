"""A pool of worker processes that are handed one job after the other.

A worker is a plain child process that reads jobs from its standard input, a JSON line each, and answers on its standard
output. It is not a ``multiprocessing`` child on purpose: those import the caller's main module again, and with it
whatever that imports, JAX included.

A module whose functions do the work starts as a worker with ``python -m``, and then calls `serve`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unihetero_jax.errors import UsageError

Message = Mapping[str, Any]
Progress = Callable[[int], None]
# Does one job, calls the second argument with the steps done since the last call, and returns its result as JSON.
Work = Callable[[Message, Progress], Message]

# Also how long a worker may outlive its parent, and how soon it hears of another's failure.
_REPORT_EVERY_S = 0.1
# Characters of a job in a complaint; some list thousands of files.
_SHOWN_JOB = 300


def usable_cores() -> int:
    """The cores that this process may use: how many workers there are by default."""
    # macOS does not say which those are.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    module: str,
    opening: Message,
    jobs: Sequence[Message],
    workers: int,
    progress: Progress,
    done: Callable[[int, Message], None],
    inherited: Sequence[int] = (),
) -> float:
    """Does every job in a pool of processes; whatever happens, none of them is left when it returns.

    Args:
        module: What a worker runs; it calls `serve`.
        opening: What every worker is told first.
        jobs: In the order that they are handed out.
        workers: Most processes.
        progress: Called with the number of steps finished since the last call, from any thread.
        done: Called with the number of a job and its result, from any thread but never from two at once.
        inherited: File descriptors that each worker holds open until it ends.

    Returns:
        Seconds from the moment that the first process was ready to the end.

    Raises:
        OSError: A file could not be written.
        UsageError: What was given turned out wrong.
        RuntimeError: A worker failed; its traceback went to standard error.
    """
    return _Pool(module, opening, jobs, progress, done).run(min(workers, len(jobs)), inherited)


class _Pool:
    """Worker processes, each driven by a thread."""

    def __init__(
        self,
        module: str,
        opening: Message,
        jobs: Sequence[Message],
        progress: Progress,
        done: Callable[[int, Message], None],
    ):
        self._module = module
        self._opening = opening
        self._progress = progress
        self._done = done
        self._jobs: queue.SimpleQueue[tuple[int, Message]] = queue.SimpleQueue()
        for numbered in enumerate(jobs):
            self._jobs.put(numbered)
        self._lock = threading.Lock()
        self._started: float | None = None
        self._failures: list[Exception] = []

    def run(self, workers: int, inherited: Sequence[int]) -> float:
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(_worker_process(self._module, inherited)) for _ in range(workers)]
            threads = [threading.Thread(target=self._drive, args=(process,), daemon=True) for process in processes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if self._failures:
                raise self._failures[0]  # Inside the block: the workers that still work are killed, not awaited.
        return 0.0 if self._started is None else time.monotonic() - self._started

    def _drive(self, process: subprocess.Popen[str]) -> None:
        """Feeds one worker until there are no jobs left, or another worker has failed."""
        assert process.stdin is not None
        try:
            self._tell(process, self._opening)
            self._hear(process)
            with self._lock:
                self._started = self._started or time.monotonic()
            while not self._failures:
                try:
                    number, job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                self._tell(process, job)
                while "steps" in (reply := self._hear(process, job)):
                    self._progress(reply["steps"])
                    if self._failures:
                        return
                with self._lock:
                    self._done(number, reply["result"])
            process.stdin.close()
        except Exception as error:  # Raised again by `run`: a thread that died in silence would leave jobs out.
            with self._lock:
                self._failures.append(error)

    def _tell(self, process: subprocess.Popen[str], message: Message) -> None:
        assert process.stdin is not None
        # A worker that ended is noticed, and its reason told, when its answer is awaited.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def _hear(self, process: subprocess.Popen[str], job: Message | None = None) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            what = "" if job is None else f"; its job was {json.dumps(job)[:_SHOWN_JOB]}"
            raise RuntimeError(f"a worker process ended early, with exit code {process.wait()}{what}")
        reply = json.loads(line)
        if "unwritable" in reply:
            raise OSError(reply["unwritable"])
        if "usage" in reply:
            raise UsageError(reply["usage"])
        return reply


@contextlib.contextmanager
def _worker_process(module: str, inherited: Sequence[int]) -> Iterator[subprocess.Popen[str]]:
    """A worker, killed on the way out if it still runs."""
    package_root = os.fspath(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=inherited,
        # Control-C is for the parent, which ends the workers.
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package_root, *filter(None, sys.path)])},
    )
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def serve(begin: Callable[[Message], Work]) -> None:
    """Lives as a worker: one line with the opening, then a job a line, until standard input ends.

    Args:
        begin: Takes the opening, gives the function that does a job.
    """
    work = begin(json.loads(sys.stdin.readline()))
    steps = 0
    reported = time.monotonic()

    def answer(message: Message) -> None:
        try:
            print(json.dumps(message), flush=True)
        except BrokenPipeError:
            # The parent was killed and could not say so. Nobody wants the result: leave it as it is, in silence.
            os._exit(1)

    def progress(count: int) -> None:
        nonlocal steps, reported
        steps += count
        if time.monotonic() - reported > _REPORT_EVERY_S:
            answer({"steps": steps})
            steps, reported = 0, time.monotonic()

    answer({"ready": True})
    for line in sys.stdin:
        try:
            result = work(json.loads(line), progress)
        except OSError as error:
            answer({"unwritable": str(error)})
            sys.exit(1)
        except UsageError as error:
            answer({"usage": str(error)})
            sys.exit(1)
        answer({"steps": steps})
        steps = 0
        answer({"result": result})
