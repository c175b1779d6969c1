"""A dataset of 200M records in 8,192 shards: how fast it opens, what random reads need, and whether the order is whole.

    python tests/benchmarks/large_dataset.py [--records=200000000] [--shards=8192] [--folder=DIR]

The records are tiny and only 64 shards are different: the others are hard links to them, so that all take 150 MB.
Everything that depends on the number of shards and records (the manifest, the search for a record, files that are
opened, the index of each) is as it would be; how fast a disk delivers pictures is not measured here.

Prints, as JSON: ``open_s`` (manifest, mixture, stream) and ``first_batch_s`` (with a batch of 64 rows from sample 150M
on, by two workers); ``reads``: seconds and resident megabytes of 10,000 random reads in one process;
``resume_s``: from opening to the first batch at steps 10 and 1,000,000, in turns; ``permutation``: that each of a
million records is drawn once an epoch, and how many of a million sampled positions of the 200M gave a record twice.
No process may have more than 1,024 files open.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from array_record.python import array_record_module

from unihetero_jax.data.mixing import Mixture, Source
from unihetero_jax.data.packing.batch_stream import BatchStream, StreamOptions
from unihetero_jax.data.packing.packed_batch import RowShape
from unihetero_jax.data.packing.row_stream import DataState, initial_state
from unihetero_jax.data.packing.rows import Recipe
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.example import serialize
from unihetero_jax.data.records.manifest import FileEntry, Manifest, write_manifest
from unihetero_jax.data.records.record import Record, Turn
from unihetero_jax.data.records.shards import Dataset, OpenShards, Split
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

DISTINCT = 64
ROWS, WINDOW = 64, 8
OPEN = 256
SPLIT = "train_text"


def make(folder: Path, records: int, shards: int) -> None:
    """Writes the shards and their manifest."""
    each = -(-records // shards)
    counts = [min(each, records - each * number) for number in range(shards)]
    files: dict[str, FileEntry] = {}
    distinct: dict[int, Path] = {}
    for number, count in enumerate(counts):
        name = f"large-{SPLIT}.array_record-{number:05d}-of-{shards:05d}"
        place = folder / name
        kind = number % DISTINCT if count == each else -1
        if kind in distinct:
            os.link(distinct[kind], place)
        else:
            writer = array_record_module.ArrayRecordWriter(os.fspath(place), "group_size:1,uncompressed")
            for index in range(count):
                turns = (Turn("human", f"{kind}?"), Turn("gpt", f"{index}"))
                writer.write(serialize(Record(f"{kind}/{index}", (), turns, "text")))
            writer.close()
            if kind >= 0:
                distinct[kind] = place
        # The digest is not read here; sizes are.
        files[name] = FileEntry(place.stat().st_size, "0" * 64)
    write_manifest(folder, Manifest("large", {}, {SPLIT: records}, files, shards={SPLIT: counts}))
    Tokenizer.train([f"{number}?" for number in range(1000)], folder / "tokenizer.model", 300)


def open_stream(folder: Path, state: DataState | None) -> BatchStream:
    """A stream of all rows, as training opens it."""
    records = Dataset(folder, OpenShards(OPEN)).split(SPLIT)
    recipe = Recipe(
        Mixture([Source("text", records, 1.0)], seed=0),
        Tokenizer.load(folder / "tokenizer.model"),
        dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 16),
        RowShape(256, 1, 16),
        batch_size=ROWS,
        window=WINDOW,
    )
    return BatchStream(recipe, range(ROWS), StreamOptions(workers=2, threads=1, read_ahead=2), state)


def first_batch(folder: Path, drawn: int) -> tuple[float, float]:
    """Seconds until the stream is open, and until its first batch, when each row has drawn so many samples."""
    started = time.perf_counter()
    state = initial_state(ROWS, WINDOW)
    state["drawn"][:] = drawn
    stream = open_stream(folder, state)
    opened = time.perf_counter() - started
    next(stream)
    taken = time.perf_counter() - started
    stream.close()
    return opened, taken


def random_reads(folder: Path, count: int) -> dict[str, float]:
    """Reads in the shuffled order; run in a process of its own, for its memory."""
    records: Split = Dataset(folder, OpenShards(OPEN)).split(SPLIT)
    samples = Mixture([Source("text", records, 1.0)], seed=0)
    started = time.perf_counter()
    for position in range(count):
        assert samples[position]["task"] == b"text"
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


class _Numbers:
    """Records that are their own numbers."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, int]:
        return {"number": number}


def permutation(records: int, sampled: int = 1_000_000) -> dict[str, int | bool]:
    """Whether each record of a smaller dataset comes once, and how often one of the large comes twice."""
    small = Mixture([Source("text", _Numbers(sampled), 1.0)], seed=0)
    once = np.zeros(sampled, np.int8)
    for position in range(sampled, 2 * sampled):  # the second epoch
        once[small.place(position)[1]] += 1
    large = Mixture([Source("text", _Numbers(records), 1.0)], seed=0)
    positions = np.random.default_rng(0).choice(records, sampled, replace=False)
    found = np.asarray([large.place(int(position))[1] for position in positions])
    return {
        "each_once_of": sampled if bool((once == 1).all()) else 0,
        "sampled": sampled,
        "twice": int(sampled - len(np.unique(found))),
        "outside": int(((found < 0) | (found >= records)).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000_000)
    parser.add_argument("--shards", type=int, default=8192)
    parser.add_argument("--folder", type=Path, help="kept, and used again")
    parser.add_argument("--reads", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reads:
        print(json.dumps(random_reads(arguments.folder, arguments.reads)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder: Path = arguments.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "manifest.json").exists():
            make(folder, arguments.records, arguments.shards)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))  # of this process, and of all that it starts
        opened, taken = first_batch(folder, arguments.records * 3 // 4 // ROWS)
        reads = subprocess.run(
            [sys.executable, __file__, f"--folder={folder}", "--reads=10000"],
            check=True,
            capture_output=True,
            text=True,
        )
        found = {
            "records": arguments.records,
            "shards": arguments.shards,
            "open_s": opened,
            "first_batch_s": taken,
            "reads": json.loads(reads.stdout),
            # Some 25 samples fill a row here; by the million-th step rows are in a later epoch.
            "resume_s": [[step, first_batch(folder, 25 * step)[1]] for step in (10, 1_000_000) * 3],
            "permutation": permutation(arguments.records),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
