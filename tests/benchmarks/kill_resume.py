"""Kills a run at random moments, again and again, and compares the end with a run that nothing happened to.

    python tests/benchmarks/kill_resume.py --kills=20

Prints a line for each kill and, last, one JSON object. Exit code 1 when anything differs or is left behind.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

OPTIONS = ("train.accumulation=2", "losses.semantic.target_gradient=ema", "checkpoint.every_steps=4")
LEFTOVER_AFTER_S = 10.0


def command(workdir: Path, data: Path, steps: int) -> list[str]:
    return runs.train_command(workdir, data, f"train.steps={steps}", *OPTIONS)


def processes_of(sessions: set[int]) -> list[int]:
    """Live processes of these sessions: what a run started and left."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z" and int(fields[3]) in sessions:
                found.append(int(entry.name))
    return found


def one_kill(workdir: Path, data: Path, steps: int, delay: float) -> tuple[int, str, int]:
    """Kills a run some time after its first step; the step it was at, what it was doing, and its process."""
    process = runs.start_and_make_a_step(command(workdir, data, steps), workdir, log=workdir.parent / "log")
    time.sleep(delay)
    ended = process.poll()
    process.kill()
    process.wait()
    doing = "ended before" if ended is not None else "saving" if runs.saves_in_flight(workdir) else "training"
    return runs.rows_written(workdir), doing, process.pid


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--steps", type=int, default=120, help="length of the run (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    temporary = place / "tmp"
    temporary.mkdir()
    os.environ |= {"TMPDIR": str(temporary), "JAX_COMPILATION_CACHE_DIR": str(place / "cache")}
    data = runs.build_dataset(place / "data")
    print("the run that nothing happens to", flush=True)
    reference, workdirs = place / "reference", [place / "run1"]
    runs.finish(runs.start(command(reference, data, options.steps), optimized=True))
    seconds = sum(json.loads(row)["timing"]["step_seconds"] for row in (reference / "metrics.jsonl").open())

    shared_memory = set(os.listdir("/dev/shm"))
    moments = random.Random(options.seed)
    sessions, saving, kills = set[int](), 0, 0
    while kills < options.kills:
        workdir = workdirs[-1]
        done = max(runs.checkpoint_steps(workdir), default=0) if (workdir / "checkpoints").is_dir() else 0
        # Somewhere in the next share of the run, so that the last kill falls near its end.
        share = (options.steps - done) / options.steps / max(1, (options.kills - kills) / 2)
        delay = moments.uniform(0.0, 0.9 * min(1, share)) * seconds
        step, doing, session = one_kill(workdir, data, options.steps, delay)
        if doing == "ended before":
            workdirs.append(place / f"run{len(workdirs) + 1}")
            print(f"run {len(workdirs) - 1} ended before it could be killed again; the next kills are of another one")
            continue
        kills += 1
        saving += doing == "saving"
        sessions.add(session)
        print(f"kill {kills:2}: after step {step:3} (started from {done:3}), {doing}", flush=True)
    time.sleep(LEFTOVER_AFTER_S)
    orphans = processes_of(sessions)
    segments = sorted(set(os.listdir("/dev/shm")) - shared_memory)
    files = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*"))

    logging.getLogger("absl").setLevel(logging.ERROR)
    expected, right = runs.metrics(reference), runs.arrays(reference)
    rows, different = 0, list[str]()
    for workdir in workdirs:
        runs.finish(runs.start(command(workdir, data, options.steps), optimized=True))
        rows += sum(left == other for left, other in zip(runs.metrics(workdir), expected, strict=True))
        different += [f"{workdir.name}: {name}" for name in runs.differing(runs.arrays(workdir), right)]
    all_rows, all_arrays = len(expected) * len(workdirs), len(right) * len(workdirs)
    result = {
        "kills": kills,
        "while_saving": saving,
        "identical_metric_rows": rows,
        "metric_rows": all_rows,
        "identical_arrays": all_arrays - len(different),
        "arrays": all_arrays,
        "different": different,
        "orphans": orphans,
        "shared_memory": segments,
        "temporary_files": files,
    }
    print(json.dumps(result))
    good = rows == all_rows and not different and not orphans and not segments and not files
    if good:
        print(f"after {kills} kills: all {rows} rows and all {all_arrays} arrays identical, nothing left behind")
        shutil.rmtree(place)
    else:
        print(f"kept for inspection: {place}", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
