"""What goes wrong in a run, on purpose; each time the end is compared with that of a run that nothing happened to.

    python tests/benchmarks/faults.py corrupt --trials=30     # checkpoints that are cut off, flipped, torn or half
    python tests/benchmarks/faults.py kill --trials=20        # kill -9 of one of four processes, at any moment
    python tests/benchmarks/faults.py elastic                 # 4 → 2 → 3 processes

Prints a line for each trial and, last, one JSON object. Exit code 1 when anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import runs

EVERY = 4
OPTIONS = ("losses.semantic.target_gradient=ema", f"checkpoint.every_steps={EVERY}")
EXACT = ("samples", "tokens", "packed", "skipped", "step", "learning_rate")


def command(workdir: Path, data: Path, steps: int, *more: str) -> list[str]:
    return runs.train_command(workdir, data, f"train.steps={steps}", *OPTIONS, *more)


def differences(workdir: Path, reference: Path) -> list[str]:
    """What differs bit for bit between the ends of two runs."""
    found = [] if runs.metrics(workdir) == runs.metrics(reference) else ["metrics.jsonl"]
    return found + runs.differing(runs.arrays(workdir), runs.arrays(reference))


# --- damaged checkpoints


def _victim(place: Path, moments: random.Random) -> Path:
    return moments.choice(sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size))


def truncate(place: Path, moments: random.Random) -> str:
    path = _victim(place, moments)
    size = path.stat().st_size
    os.truncate(path, moments.randrange(size))
    return f"{path.relative_to(place)}: {size} → {path.stat().st_size} bytes"


def flip(place: Path, moments: random.Random) -> str:
    path = _victim(place, moments)
    content = bytearray(path.read_bytes())
    bit = moments.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"{path.relative_to(place)}: bit {bit}"


def delete(place: Path, moments: random.Random) -> str:
    path = _victim(place, moments)
    path.unlink()
    return f"{path.relative_to(place)}: deleted"


def half(place: Path, moments: random.Random) -> str:
    """As a copy or a save leaves it that was stopped: some files are whole, one is cut off, the rest is missing."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    moments.shuffle(files)
    kept = moments.randrange(1, len(files))
    for path in files[kept:]:
        path.unlink()
    os.truncate(files[kept - 1], files[kept - 1].stat().st_size // 2)
    return f"{kept - 1} of {len(files)} files are whole"


KINDS: tuple[Callable[[Path, random.Random], str], ...] = (truncate, flip, delete, half)


def corrupt(options: argparse.Namespace, place: Path, data: Path) -> dict[str, Any]:
    steps = 3 * EVERY
    reference = place / "reference"
    runs.finish(runs.start(command(reference, data, steps, "checkpoint.keep_latest=9"), optimized=True))
    moments = random.Random(options.seed)
    detected = restored = identical = 0
    wrong = []
    for trial in range(options.trials):
        workdir = place / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(reference, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(steps))
        kind = KINDS[trial % len(KINDS)]
        what = kind(workdir / "checkpoints" / str(2 * EVERY), moments)
        output = runs.finish(runs.start(command(workdir, data, steps, "checkpoint.keep_latest=9"), optimized=True))
        lines = [line for line in output.splitlines() if f"checkpoints/{2 * EVERY}: " in line and "moved to" in line]
        found = len(lines) == 1
        # The rows of the steps after the good checkpoint are new, those before it are not.
        rows = [json.loads(line)["timing"]["time"] for line in (workdir / "metrics.jsonl").open()]
        old = [json.loads(line)["timing"]["time"] for line in (reference / "metrics.jsonl").open()]
        back = [now == before for now, before in zip(rows, old, strict=True)] == [True] * EVERY + [False] * 2 * EVERY
        different = differences(workdir, reference)
        detected += found
        restored += back
        identical += not different
        if not (found and back) or different:
            wrong.append({"trial": trial, "kind": kind.__name__, "what": what, "said": lines, "different": different})
        said = lines[0].rpartition("; moved")[0].partition(f"checkpoints/{2 * EVERY}: ")[2] if found else "NOT FOUND"
        print(f"{trial + 1:3} {kind.__name__:8} {what:60.60}  →  {said}", flush=True)
    result = {"corrupted": options.trials, "detected": detected, "newest_good_restored": restored}
    return result | {"identical": identical, "wrong": wrong, "good": not wrong}


# --- killed processes


class Job:
    """``launch/local.py`` with its output read line by line, and the time of each."""

    def __init__(self, processes: int, arguments: list[str], restarts: int = 3):
        launcher = [sys.executable, str(runs.LAUNCHER), f"--processes={processes}", f"--restarts={restarts}"]
        self.started = time.time()
        self.process = subprocess.Popen(
            [*launcher, "--grace=5", "--", *arguments],
            cwd=runs.ROOT,
            env=runs.environment(1, optimized=True),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line))

    def children(self) -> list[int]:
        """The processes of the present start, by number."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    environment = (entry / "environ").read_bytes() if parent == self.process.pid else b""
                except OSError:
                    continue
                if number := re.search(rb"JAX_PROCESS_ID=(\d+)", environment):
                    found[int(number[1])] = int(entry.name)
        return [found[number] for number in sorted(found)]

    def finish(self) -> str:
        """The output of a job that ends well."""
        try:
            code = self.process.wait(runs.PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            code = -1
        self._reader.join(5.0)
        output = "".join(line for _, line in self.lines)
        assert code == 0, f"exit code {code}:\n{output}"
        return output


def kill(options: argparse.Namespace, place: Path, data: Path) -> dict[str, Any]:
    count = options.processes
    reference = place / "reference"
    print("the run that nothing happens to", flush=True)
    job = Job(count, command(reference, data, options.steps))
    job.finish()
    rows = [json.loads(line)["timing"]["time"] for line in (reference / "metrics.jsonl").open()]
    seconds = rows[-1] - job.started
    print(f"first step after {rows[0] - job.started:.1f} s, last after {seconds:.1f} s", flush=True)
    step_seconds = (rows[-1] - rows[0]) / options.steps
    moments = random.Random(options.seed)
    done = identical = 0
    first_steps, wrong, at = [], [], []
    while done < options.trials:
        workdir = place / f"run{done}"
        number = moments.randrange(count)
        # Some while it starts and compiles, most while it steps and saves. Moments go by its progress, because a
        # machine that others use, too, is not equally fast all the time.
        early = moments.random() < 0.2
        after = 0 if early else moments.randrange(1, options.steps)
        delay = moments.uniform(1.0, rows[0] - job.started) if early else moments.uniform(0.0, step_seconds)
        trial = Job(count, command(workdir, data, options.steps))
        if after:
            runs.wait_until(
                lambda workdir=workdir, after=after: runs.rows_written(workdir) >= after, trial.process, poll_s=0.01
            )
        time.sleep(delay)
        if trial.process.poll() is not None or len(children := trial.children()) < count:
            trial.process.wait()
            shutil.rmtree(workdir, ignore_errors=True)
            print("ended before it could be killed; another one", flush=True)
            continue
        os.kill(children[number], signal.SIGKILL)
        killed = time.time()
        step, saving = runs.rows_written(workdir), (workdir / "checkpoints").is_dir() and runs.saves_in_flight(workdir)
        try:
            output = trial.finish()
            different = differences(workdir, reference)
        except AssertionError as error:
            output, different = str(error), ["no end"]
        times = [json.loads(line)["timing"]["time"] for line in (workdir / "metrics.jsonl").open()]
        restarted = next((when for when, line in trial.lines if "restart 1 of" in line), killed)
        first = min((when for when in times if when > restarted), default=float("nan")) - restarted
        done += 1
        identical += not different
        at.append(step)
        first_steps.append(first)
        if different:
            wrong.append({"trial": done, "process": number, "step": step, "different": different[:5]})
            (place / f"output{done}").write_text(output)
        else:
            shutil.rmtree(workdir)
        print(
            f"{done:3} process {number} killed after step {step:3}{' while saving' if saving else ''}; noticed in "
            f"{restarted - killed:4.1f} s, first step {first:4.1f} s after the restart; "
            f"{'identical' if not different else different[:3]}",
            flush=True,
        )
    return {
        "processes": count,
        "kills": done,
        "identical": identical,
        "after_steps": at,
        "restart_to_first_step_seconds": {
            "median": round(statistics.median(first_steps), 1),
            "most": round(max(first_steps), 1),
        },
        "wrong": wrong,
        "good": not wrong,
    }


# --- another number of processes


def elastic(options: argparse.Namespace, place: Path, data: Path) -> dict[str, Any]:
    del options
    # Twelve rows and widths of 48 can be split over 4, 2 and 3. The learning rate is constant because a schedule to the
    # end would differ from leg to leg; a larger epsilon keeps Adam from making a full step of a rounding near zero.
    more = (
        *("train.batch_size=12", "optimizer.schedule=constant", "optimizer.epsilon=1e-3", "checkpoint.keep_latest=9"),
        *("model.decoder.width=48", "model.decoder.mlp_width=96", "losses.pixel.width=48"),
        *("model.understanding_tower.width=48",),
    )
    reference, workdir = place / "reference", place / "run"
    Job(4, command(reference, data, 15, *more)).finish()
    for count, steps in ((4, 5), (2, 10), (3, 15)):
        output = Job(count, command(workdir, data, steps, *more)).finish()
        assert f"fsdp={count}" in output, output
    rows, expected = runs.metrics(workdir), runs.metrics(reference)
    same = [[row[name] for name in EXACT] for row in rows] == [[row[name] for name in EXACT] for row in expected]
    same = same and not runs.differing(runs.arrays(workdir, 15, ["data"]), runs.arrays(reference, 15, ["data"]))
    names = ("loss", "text", "semantic", "pixel")
    off = max(
        float(np.max(np.abs(np.subtract([row[name] for row in rows], [row[name] for row in expected]))))
        for name in names
    )
    print(f"4 → 2 → 3 processes: the same rows: {same}; losses differ by at most {off:.1e}", flush=True)
    return {"same_rows": same, "largest_difference_of_a_loss": off, "good": same and off <= 1e-4}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("corrupt", "kill", "elastic"))
    parser.add_argument("--trials", type=int, default=0, help="how many (default: 30 for corrupt, 20 for kill)")
    parser.add_argument("--processes", type=int, default=4, help="of kill (default: 4)")
    parser.add_argument("--steps", type=int, default=60, help="length of a run of kill (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of files, bits and moments (default: 0)")
    options = parser.parse_args()
    options.trials = options.trials or (30 if options.what == "corrupt" else 20)
    logging.getLogger("absl").setLevel(logging.ERROR)
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(place / "cache")}
    data = runs.build_dataset(place / "data")
    result = {"corrupt": corrupt, "kill": kill, "elastic": elastic}[options.what](options, place, data)
    print(json.dumps(result))
    if result["good"]:
        shutil.rmtree(place)
    else:
        print(f"kept for inspection: {place}", file=sys.stderr)
    return 0 if result["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
