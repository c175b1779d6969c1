"""Trains every small twin on one device and on eight, kills and continues it, and lets it draw.

    python tests/benchmarks/twins.py [NAME ...] [--steps=200]

For each twin: a run on one device; the same run killed with SIGKILL after half its steps and continued, which has to be
identical bit for bit; a run on eight (fake) devices, whose losses have to agree up to what rounding grows to; and a
picture, or its embeddings, from ``unihetero generate``. Prints a line a twin and, last, one JSON object. Exit code 1
when anything differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

from unihetero_jax.config import loading as config_file
from unihetero_jax.data.smart_watch.builder import build

CONFIGS = runs.ROOT / "configs"
TWINS = {
    path.stem.removesuffix("_small"): path
    for path in sorted([*CONFIGS.glob("pairings/*_small.py"), CONFIGS / "unihetero_small.py"])
}


def losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in runs.metrics(workdir)]


def one_twin(name: str, place: Path, data: Path, steps: int) -> dict[str, object]:
    def command(workdir: Path) -> list[str]:
        options = (f"train.steps={steps}", "evaluate.at_end=false", f"checkpoint.every_steps={max(1, steps // 4)}")
        return runs.train_command(workdir, data, *options, config=TWINS[name])

    alone, broken, split = (place / f"{name}_{kind}" for kind in ("alone", "broken", "split"))
    started = time.monotonic()
    runs.finish(runs.start(command(alone), optimized=True))
    seconds = time.monotonic() - started
    process = runs.start(command(broken), log=place / "log", optimized=True)
    runs.wait_until(lambda: runs.rows_written(broken) >= steps // 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = runs.rows_written(broken)
    runs.finish(runs.start(command(broken), optimized=True))
    different = runs.differing(runs.arrays(broken), runs.arrays(alone))
    same_rows = runs.metrics(broken) == runs.metrics(alone)
    runs.finish(runs.start(command(split), devices=8, optimized=True))
    one, eight = losses(alone), losses(split)
    # Rounding grows with the steps; the first ones tell whether the same is computed.
    early = max(abs(left - right) / abs(left) for left, right in list(zip(one, eight, strict=True))[:5])
    late = abs(one[-1] - eight[-1]) / abs(one[-1])
    drawn = {}
    for devices, workdir in ((1, alone), (8, split)):
        request = ["generate", f"--workdir={workdir}", "--prompt=Draw a watch that shows 10:08:42."]
        picture = place / f"{name}_{devices}.png"
        drawn[devices] = runs.finish(runs.start([*request, f"--out={picture}"], devices=devices, optimized=True))
        drawn[devices] = "picture" if picture.exists() else drawn[devices].strip().splitlines()[-1]
    steady = [row["timing"]["step_seconds"] for row in map(json.loads, (alone / "metrics.jsonl").open())][5:]
    return {
        "seconds": round(seconds, 1),
        "step_ms": round(1000 * sorted(steady)[len(steady) // 2], 1),
        "loss": [round(one[0], 4), round(one[-1], 4)],
        "killed_after": rows,
        "resume_identical": same_rows and not different,
        "eight_devices_early": early,
        "eight_devices_last": late,
        "drawn": drawn,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TWINS)} (default: all)")
    parser.add_argument("--steps", type=int, default=200, help="of each run (default: 200)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(TWINS):
        parser.error(f"unknown twin {sorted(unknown)[0]}: expected {', '.join(TWINS)}")
    place = Path(tempfile.mkdtemp(prefix="twins-"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place / "cache")
    logging.getLogger("absl").setLevel(logging.ERROR)
    data = config_file.load(next(iter(TWINS.values())), []).data
    build(place / "data", image_size=data.image_size, **dataclasses.asdict(data.smart_watch))
    results = {}
    for name in options.names or TWINS:
        results[name] = one_twin(name, place, place / "data", options.steps)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    print(json.dumps(results))
    good = all(
        result["resume_identical"] and result["eight_devices_early"] < 1e-4 and result["loss"][1] < result["loss"][0]
        for result in results.values()
    )
    print(f"pictures: {place}" if good else f"kept for inspection: {place}")
    for workdir in place.glob("*_*"):
        if good and workdir.is_dir():
            shutil.rmtree(workdir)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
