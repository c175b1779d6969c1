"""The input pipeline against bare decoding and against PyTorch's DataLoader; what a small sample costs beyond decoding.

    python tests/benchmarks/input_pipeline.py          (without the extra `torch`, the DataLoader is left out)

Pictures of 256 pixels (JPEG, 20 kB) with captions of 20 words become packed batches of 224-pixel crops and tokens. They
are read in shuffled order from ArrayRecord shards. The peers do less: two processes of bare ``simplejpeg`` decode what
they hold in memory, whole, and do nothing else; the DataLoader (2 workers) reads files, decodes and crops with PIL,
tokenises and pads. We make batches with threads alone (``threads``), with one worker process (``1 worker``), and with
two (``2 workers``), one thread each. All take turns, each for some seconds, and the medians of the rounds are compared.

For small pictures (64 pixels, PNG and JPEG) one thread makes batches; the time a sample, less what decoding alone takes
in the same process, is what the pipeline costs: reading, parsing, tokenising, laying out, packing.

Prints JSON; rates are samples a second.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import simplejpeg
from array_record.python import array_record_module
from PIL import Image

from unihetero_jax.data.mixing import Mixture, Source
from unihetero_jax.data.packing.batch_stream import BatchStream, StreamOptions
from unihetero_jax.data.packing.packed_batch import RowShape
from unihetero_jax.data.packing.rows import Recipe
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.example import serialize
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.manifest import Manifest, describe_files, write_manifest
from unihetero_jax.data.records.record import Record, Turn
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

SPLIT = "train_caption"
WORDS = (
    "a the small large red green blue old new dog cat house tree street river person chair table light dark near under "
    "with and on in of beside two three"
).split()


def picture(seed: int, size: int, kind: str) -> bytes:
    """A picture with large shapes and fine texture."""
    draws = np.random.default_rng(seed)
    coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    texture = draws.normal(0, 9, (size, size, 3))
    pixels = np.clip(np.asarray(coarse) + texture, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 84} if kind == "jpeg" else {}))
    return file.getvalue()


def caption(seed: int) -> str:
    draws = np.random.default_rng(seed)
    return " ".join(WORDS[index] for index in draws.integers(0, len(WORDS), 20))


def write(folder: Path, pictures: Sequence[bytes], shards: int = 4, times: int = 8) -> None:
    """A dataset as an import makes it, each picture in it several times; and each once as a plain file.

    A shuffle of few thousand records would cost more a record than that of many (it walks through a power of 4).
    """
    (folder / "files").mkdir(parents=True)
    counts = []
    for shard in range(shards):
        path = folder / f"pairs-{SPLIT}.array_record-{shard:05d}-of-{shards:05d}"
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        numbers = range(shard, len(pictures) * times, shards)
        for number in numbers:
            turns = (Turn("human", "<image>\nDescribe the picture."), Turn("gpt", caption(number)))
            writer.write(serialize(Record(str(number), (pictures[number % len(pictures)],), turns, "caption")))
        writer.close()
        counts.append(len(numbers))
    for number, data in enumerate(pictures):
        (folder / "files" / f"{number}.jpg").write_bytes(data)
    files = describe_files(folder)
    kept = {name: entry for name, entry in files.items() if not name.startswith("files/")}
    write_manifest(folder, Manifest("pairs", {}, {SPLIT: sum(counts)}, kept, shards={SPLIT: counts}))
    Tokenizer.train([caption(number) for number in range(500)], folder / "tokenizer.model", 600)


def open_stream(
    folder: Path, size: int, tokens: int, shape: RowShape, rows: int, threads: int, workers: int = 0, **how: Any
) -> BatchStream:
    records = Dataset(folder).split(SPLIT)
    recipe = Recipe(
        Mixture([Source("caption", records, 1.0, **how)], seed=0),
        Tokenizer.load(folder / "tokenizer.model"),
        dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), tokens),
        shape,
        batch_size=rows,
        window=8,
    )
    return BatchStream(recipe, range(rows), StreamOptions(workers, threads, read_ahead=2))


def rate_of(stream: BatchStream, seconds: float) -> float:
    """Samples a second, once the stream runs, and its memory is there."""
    for _ in range(8):
        next(stream)
    samples, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        batch, _ = next(stream)
        samples += int(batch["segment"].max(axis=1).sum())
    taken = time.perf_counter() - started
    stream.close()
    return samples / taken


def ours(folder: Path, threads: int, workers: int, seconds: float) -> float:
    how = {"fit": "crop", "share": 224 / 256, "random": True}
    return rate_of(open_stream(folder, 224, 196, RowShape(2048, 16, 224), 16, threads, workers, **how), seconds)


def _decode_for(pictures: Sequence[bytes], seconds: float, done: Any) -> None:
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for data in pictures[:64]:
            simplejpeg.decode_jpeg(data)
        count += 64
    done.put(count / (time.perf_counter() - started))


def bare(pictures: Sequence[bytes], processes: int, seconds: float) -> float:
    """What processes decode together, and nothing else."""
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    workers = [context.Process(target=_decode_for, args=(pictures, seconds, done)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    rates = [done.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rates)


def data_loader(folder: Path, count: int, workers: int, seconds: float) -> float:
    """PyTorch's DataLoader as released training code uses it: files, PIL, tokenizer, padding."""
    import sentencepiece
    import torch

    class Pairs(torch.utils.data.Dataset):  # type: ignore[misc]
        def __init__(self) -> None:
            self.coder = sentencepiece.SentencePieceProcessor(model_file=os.fspath(folder / "tokenizer.model"))

        def __len__(self) -> int:
            return count

        def __getitem__(self, number: int) -> tuple[Any, Any]:
            with Image.open(folder / "files" / f"{number}.jpg") as file:
                pixels = np.asarray(file.convert("RGB").crop((16, 16, 240, 240)))
            ids = self.coder.EncodeAsIds("Describe the picture. " + caption_of[number])
            return torch.from_numpy(pixels.copy()), torch.tensor(ids)

    def collate(items: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        images, ids = zip(*items, strict=True)
        return torch.stack(images), torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)

    caption_of = [caption(number) for number in range(count)]
    loader = torch.utils.data.DataLoader(
        Pairs(), batch_size=128, shuffle=True, num_workers=workers, collate_fn=collate, multiprocessing_context="fork"
    )
    samples, started = 0, 0.0
    while True:
        for images, _ in loader:
            if started:
                samples += len(images)
            else:  # the workers are there
                started = time.perf_counter()
            if time.perf_counter() - started > seconds:
                return samples / (time.perf_counter() - started)


def overhead(folder: Path, pictures: Sequence[bytes], seconds: float) -> dict[str, float]:
    """Microseconds a sample of small pictures: decoding alone, and all of the pipeline, in one thread."""
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds / 2:
        for data in pictures[:256]:
            decode(data, 64)
        count += 256
    alone = (time.perf_counter() - started) / count
    whole = 1 / rate_of(open_stream(folder, 64, 16, RowShape(512, 16, 64), 64, threads=1), seconds)
    return {"decoding_us": alone * 1e6, "all_us": whole * 1e6, "overhead_us": (whole - alone) * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("all", "large", "small"), default="all")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0]}
    with tempfile.TemporaryDirectory() as place:
        if arguments.part != "small":
            found["256 px"] = _large(Path(place), arguments)
        if arguments.part != "large":
            for kind in ("png", "jpeg"):
                folder = Path(place) / kind
                small = [picture(number, 64, kind) for number in range(2000)]
                write(folder, small)
                rounds = [overhead(folder, small, arguments.seconds) for _ in range(arguments.rounds)]
                found[f"64 px {kind}"] = {name: statistics.median(made[name] for made in rounds) for name in rounds[0]}
    print(json.dumps(found, indent=1))


def _large(place: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    folder = place / "large"
    pictures = [picture(number, 256, "jpeg") for number in range(arguments.pictures)]
    write(folder, pictures)
    try:
        import torch  # noqa: F401 - whether it is there
    except ImportError:
        with_torch = False
    else:
        with_torch = True
    rates: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        rates.setdefault("bare", []).append(bare(pictures, 2, arguments.seconds))
        for name, threads, workers in (("threads", arguments.threads, 0), ("1 worker", 1, 1), ("2 workers", 1, 2)):
            rates.setdefault(name, []).append(ours(folder, threads, workers, arguments.seconds))
        if with_torch:
            rates.setdefault("data_loader", []).append(data_loader(folder, len(pictures), 2, arguments.seconds))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "bytes": statistics.mean(map(len, pictures)),
        **medians,
        **{
            f"{name} / {peer}": statistics.median(a / b for a, b in zip(rates[name], rates[peer], strict=True))
            for name in ("threads", "2 workers")
            for peer in ("bare", "data_loader")
            if peer in rates
        },
    }


if __name__ == "__main__":
    main()
