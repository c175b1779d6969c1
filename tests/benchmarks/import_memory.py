"""Peak memory of an import: a synthetic checkpoint of Llama-2-7B's shape is written, imported, and removed.

    python tests/benchmarks/import_memory.py
    python tests/benchmarks/import_memory.py --layers=8 --to=arrays

``--to=disk`` writes our parameters into memory-mapped files, so that none of them stays in memory; ``--to=arrays``
makes JAX arrays, whose bytes are taken off. Prints one JSON object; exit code 1 when what is left is twice the largest
shard or more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import ml_dtypes
import numpy as np

from unihetero_jax.config import DecoderConfig
from unihetero_jax.model.build import define_language_model
from unihetero_jax.model.families.base import DecoderFamily, renaming
from unihetero_jax.parallel.mesh import evaluation_mesh
from unihetero_jax.weights.fill import Arrays, fill
from unihetero_jax.weights.layouts import slots
from unihetero_jax.weights.tensors import TensorFiles
from unihetero_jax.weights.writer import SHARD_BYTES, Tensor, write_folder

BF16 = np.dtype(ml_dtypes.bfloat16)
VOCABULARY = 32_000


class MemoryMaps:
    """Parameters as files, mapped only while a tensor is written."""

    def __init__(self, folder: Path, shapes):
        self.folder, self.shapes = folder, shapes

    def put(self, path, layer, source) -> None:
        shape = self.shapes
        for name in path:
            shape = shape[name]
        file = self.folder / ".".join(path)
        array = np.memmap(file, BF16, "r+" if file.exists() else "w+", shape=tuple(shape.shape))
        here = array if layer is None else array[layer]
        whole = (slice(None),) * len(source.shape)
        here[...] = source[whole]
        array.flush()


class Peak:
    """The largest resident set while it is watched, in bytes: of the process, and of it what is no page of a file."""

    def __init__(self):
        self.resident = self.anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.02):
            anonymous, of_files = (memory(field) for field in ("RssAnon", "RssFile"))
            self.resident = max(self.resident, anonymous + of_files)
            self.anonymous = max(self.anonymous, anonymous)


def memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def synthetic(folder: Path, config: DecoderConfig, shapes, shard_bytes: int) -> None:
    """A published folder of numbers from a small pool of random ones."""
    pool = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(BF16)
    tensors = []
    for name, slot in slots(DecoderFamily.rules(config), shapes).items():
        shape = slot.rule.layout.shape(slot.shape)
        full = name if name == "lm_head.weight" else f"model.{name}"
        tensors.append(Tensor(full, shape, BF16, lambda shape=shape: np.resize(pool, shape)))
    write_folder(folder, tensors, {}, shard_bytes)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=32, help="of the model (default: %(default)s)")
    parser.add_argument(
        "--shard_bytes", type=int, default=SHARD_BYTES, help="of a file, at most (default: %(default)s)"
    )
    parser.add_argument("--to", choices=("disk", "arrays"), default="disk", help="where to (default: %(default)s)")
    parser.add_argument("--place", type=Path, default=None, help="directory for the files (default: temporary)")
    options = parser.parse_args()
    config = DecoderConfig(
        width=4096, layers=options.layers, heads=32, kv_heads=32, mlp_width=11008, tie_embeddings=False
    )
    definition = define_language_model(config, VOCABULARY)
    shapes = definition.shapes()["decoder"]
    with tempfile.TemporaryDirectory(dir=options.place, prefix="import-memory-") as name:
        place = Path(name)
        synthetic(place / "theirs", config, shapes, options.shard_bytes)
        shards = [file.stat().st_size for file in (place / "theirs").glob("*.safetensors")]
        where = definition.shardings(evaluation_mesh(1))["decoder"]
        before = memory("VmRSS")
        if options.to == "disk":
            (place / "ours").mkdir()
            to = MemoryMaps(place / "ours", shapes)
        else:
            to = Arrays(shapes, where, BF16)
        started = time.perf_counter()
        with Peak() as peak, TensorFiles(place / "theirs") as files:
            fill(files, slots(DecoderFamily.rules(config), shapes), renaming(files, config.tie_embeddings), to)
        arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(to.tree())) if isinstance(to, Arrays) else 0
        extra = peak.resident - arrays - before
        print(
            json.dumps(
                {
                    "to": options.to,
                    "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
                    "checkpoint_bytes": sum(shards),
                    "shards": len(shards),
                    "largest_shard_bytes": max(shards),
                    "seconds": round(time.perf_counter() - started, 1),
                    "resident_before": before,
                    "peak_resident": peak.resident,
                    "peak_anonymous": peak.anonymous,
                    "array_bytes": arrays,
                    "extra_bytes": extra,
                    "extra_of_largest_shard": round(extra / max(shards), 3),
                }
            )
        )
        return int(extra >= 2 * max(shards))


if __name__ == "__main__":
    sys.exit(main())
