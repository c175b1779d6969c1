"""Pool of worker processes, each of which does one job after another.

A worker is a plain child process that reads jobs from its standard input, one JSON line each, and answers on its
standard output. It is deliberately not a ``multiprocessing`` child: those import the caller's main module again, and
with it JAX.

A module whose functions do the work is started as a worker with ``python -m``, and then calls `serve`.
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
from typing import Any

from unihetero_jax.data.packing.processes import child_environment
from unihetero_jax.errors import UsageError

Message = Mapping[str, Any]
Progress = Callable[[int], None]
# Does one job, calls the second argument with the steps done since the last call, and returns its result as JSON.
Work = Callable[[Message, Progress], Message]

# Also how long a worker may outlive its parent, and how soon it notices another's failure.
_REPORT_EVERY_S = 0.1
# Characters of a job in an error message; some list thousands of files.
_SHOWN_JOB = 300


def run_jobs(
    module: str,
    opening: Message,
    jobs: Sequence[Message],
    workers: int,
    progress: Progress,
    done: Callable[[int, Message], None],
    inherited: Sequence[int] = (),
) -> float:
    """Do every job in a pool of processes; none of them is left when it returns or raises.

    Args:
        module: Module that a worker runs; it calls `serve`.
        opening: First message to every worker.
        jobs: The jobs, in the order in which they are handed out.
        workers: Most processes.
        progress: Called with the number of steps finished since the last call, from any thread.
        done: Called with the number of a job and its result, from any thread but never from two at once.
        inherited: File descriptors that each worker holds open until it ends.

    Returns:
        Seconds from the moment that the first process was ready to the end.

    Raises:
        OSError: A file could not be written.
        UsageError: The input was wrong.
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
                raise self._failures[0]  # inside the block, so that the other workers are killed, not awaited
        return 0.0 if self._started is None else time.monotonic() - self._started

    def _drive(self, process: subprocess.Popen[str]) -> None:
        """Feed one worker until there are no jobs left, or another worker has failed."""
        assert process.stdin is not None
        try:
            self._send(process, self._opening)
            self._receive(process)
            with self._lock:
                self._started = self._started or time.monotonic()
            while not self._failures:
                try:
                    number, job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                self._send(process, job)
                while "steps" in (reply := self._receive(process, job)):
                    self._progress(reply["steps"])
                    if self._failures:
                        return
                with self._lock:
                    self._done(number, reply["result"])
            process.stdin.close()
        except Exception as error:  # raised again by `run`: a thread that died silently would leave jobs out
            with self._lock:
                self._failures.append(error)

    def _send(self, process: subprocess.Popen[str], message: Message) -> None:
        assert process.stdin is not None
        # That a worker has ended is noticed, with the reason, when its answer is awaited.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def _receive(self, process: subprocess.Popen[str], job: Message | None = None) -> dict[str, Any]:
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
    """Start a worker; kill it at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=inherited,
        # Control-C reaches the parent only, which ends the workers.
        start_new_session=True,
        env=child_environment(),
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
    """Run as a worker: read one line with the opening, then one job per line, until standard input ends.

    Args:
        begin: Takes the opening and returns the function that does a job.
    """
    work = begin(json.loads(sys.stdin.readline()))
    steps = 0
    reported = time.monotonic()

    def answer(message: Message) -> None:
        try:
            print(json.dumps(message), flush=True)
        except BrokenPipeError:
            # The parent was killed: nobody needs the result.
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
