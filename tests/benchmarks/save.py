"""How long a checkpoint holds up training, beside the time that it takes to write; and what checksums cost.

    python tests/benchmarks/save.py --megabytes=20,500

Prints a line for each size and, last, one JSON object. Exit code 1 when a save in the background holds up training for
more than a tenth of the time that a synchronous one takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import runs

from unihetero_jax.checkpoint import checksums
from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.checkpoint.writer import CheckpointWriter
from unihetero_jax.config import loading as config_file

TARGET = 0.1
LAYERS = 8


def state_of(megabytes: int) -> dict[str, Any]:
    """Parameters and two moments of a model of some layers, of random numbers, which hardly compress."""
    chance = np.random.default_rng(0)
    width = int((megabytes * 1e6 / 4 / 3 / LAYERS) ** 0.5)

    def tree() -> dict[str, jax.Array]:
        return {
            f"layer{number}": jax.numpy.asarray(chance.standard_normal((width, width), np.float32))
            for number in range(LAYERS)
        }

    return {"params": tree(), "opt_state": {"mu": tree(), "nu": tree()}, "step": jax.numpy.int32(1)}


def measure(megabytes: int, repeats: int, place: Path) -> dict[str, Any]:
    config = config_file.load(runs.TINY, [])
    state = state_of(megabytes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    writer = CheckpointWriter(place, config.checkpoint)
    data = {"drawn": np.zeros(8, np.int32)}
    touch = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree))
    step, blocked, whole = 0, [], []
    writer.save(step, state, data, {"config": config.to_dict(), "timers": {}}, required=True)  # compiles the copies
    for _ in range(repeats):
        state = jax.block_until_ready(touch(state))
        step += 1
        started = time.perf_counter()
        writer.save(step, state, data, {"config": config.to_dict(), "timers": {}}, required=True)
        whole.append(time.perf_counter() - started)
        state = jax.block_until_ready(touch(state))
        step += 1
        started = time.perf_counter()
        writer.save(step, state, data, {"config": config.to_dict(), "timers": {}})
        blocked.append(time.perf_counter() - started)
        time.sleep(1.5 * whole[-1] + 0.2)
    writer.close()
    path = place / "checkpoints" / str(step)
    entries = checksums.read(path)
    assert entries is not None
    started = time.perf_counter()
    assert checkpoint.damage(path, "full") is None
    check = time.perf_counter() - started
    started = time.perf_counter()
    for name in entries:
        checksums.measure(path / name)
    one_thread = time.perf_counter() - started
    stored = checksums.total(path)
    found = {
        "state_bytes": size,
        "stored_bytes": stored,
        "files": len(entries),
        "synchronous_seconds": round(statistics.median(whole), 3),
        "blocked_seconds": round(statistics.median(blocked), 4),
        "blocked_share": round(statistics.median(blocked) / statistics.median(whole), 4),
        "checksum_gb_per_second": round(stored / one_thread / 1e9, 2),
        "verify_gb_per_second": round(stored / check / 1e9, 2),
    }
    print(
        f"{size / 1e6:6.0f} MB: synchronous {found['synchronous_seconds']:.3f} s, training held up for "
        f"{found['blocked_seconds']:.4f} s ({found['blocked_share']:.1%}); checksums at "
        f"{found['checksum_gb_per_second']} GB/s in one thread, {found['verify_gb_per_second']} GB/s in all",
        flush=True,
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", default="20,500", help="sizes of the state (default: 20, the quickstart's; 500)")
    parser.add_argument("--repeats", type=int, default=5, help="saves of each kind (default: 5)")
    options = parser.parse_args()
    results = []
    for megabytes in map(int, options.megabytes.split(",")):
        place = Path(tempfile.mkdtemp(prefix="save-"))
        try:
            results.append(measure(megabytes, options.repeats, place))
        finally:
            shutil.rmtree(place)
    good = all(found["blocked_share"] <= TARGET for found in results)
    print(json.dumps({"sizes": results, "good": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
