"""Images decoded a second, by one thread and by two: ours beside bare simplejpeg and beside Pillow.

    python tests/benchmarks/decode.py [--seconds=1.0] [--rounds=5]

Photograph-like JPEGs of 256 pixels a side (20 KB) to 224 pixels, once cut out and once resized, 1024 pixels (300 KB) to
224, and 64-pixel JPEG and PNG at their own size. All sides take turns in one process and the best round counts, because
other work on the machine only ever slows one down. Prints a table and, last, one JSON object. Exit code 1 when cutting
224 pixels out takes more than 4/3 of the processor's time that simplejpeg takes to decode.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import simplejpeg
from PIL import Image

from unihetero_jax.data.records.images import decode

SHARE = 0.75
CUT, SIZE, LARGE, SMALL = 224, 256, 1024, 64
CHUNK = 16


def photograph(side: int, seed: int) -> Image.Image:
    """Waves and noise that a JPEG of quality 80 needs 2.4 bits a pixel for."""
    y, x = np.mgrid[:side, :side]
    waves = [128 + 80 * np.sin(x / 17 + y / 31 + c) + 30 * np.cos(x * y / 900 + c) for c in range(seed, seed + 3)]
    noise = np.random.default_rng(seed).normal(0, 14, (side, side, 3))
    return Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))


def files(side: int, kind: str, count: int = 16) -> list[bytes]:
    made = []
    for seed in range(count):
        file = io.BytesIO()
        photograph(side, seed).save(file, kind, **({"quality": 80} if kind == "jpeg" else {}))
        made.append(file.getvalue())
    return made


def with_pillow(data: bytes, size: int, cut: bool) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as file:
        picture = file.convert("RGB")
    if cut:
        left, top = (picture.width - size) // 2, (picture.height - size) // 2
        return np.asarray(picture.crop((left, top, left + size, top + size)))
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def rate(work: Callable[[bytes], object], data: list[bytes], threads: int, seconds: float) -> tuple[float, float]:
    """Images a second, and images a second of the processor's time."""
    stop = time.perf_counter() + seconds

    def keep_on(start: int) -> int:
        done = start
        while time.perf_counter() < stop:
            for index in range(done, done + CHUNK):
                work(data[index % len(data)])
            done += CHUNK
        return done - start

    started, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(keep_on, range(threads)))
    return count / (time.perf_counter() - started), count / (time.process_time() - used)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    cases: dict[str, tuple[list[bytes], dict[str, Callable[[bytes], object]]]] = {
        f"JPEG {SIZE} → {CUT}, cut out": (
            files(SIZE, "jpeg"),
            {
                "simplejpeg": simplejpeg.decode_jpeg,
                "ours": lambda data: decode(data, CUT, fit="crop", share=CUT / SIZE),
                "Pillow": lambda data: with_pillow(data, CUT, True),
            },
        ),
        f"JPEG {SIZE} → {CUT}, resized": (
            files(SIZE, "jpeg"),
            {"ours": lambda data: decode(data, CUT), "Pillow": lambda data: with_pillow(data, CUT, False)},
        ),
        f"JPEG {LARGE} → {CUT}, resized": (
            files(LARGE, "jpeg", 4),
            {
                "simplejpeg": simplejpeg.decode_jpeg,
                "ours": lambda data: decode(data, CUT),
                "Pillow": lambda data: with_pillow(data, CUT, False),
            },
        ),
        f"JPEG {SMALL}": (
            files(SMALL, "jpeg"),
            {
                "simplejpeg": simplejpeg.decode_jpeg,
                "ours": lambda data: decode(data, SMALL),
                "Pillow": lambda data: with_pillow(data, SMALL, False),
            },
        ),
        f"PNG {SMALL}": (
            files(SMALL, "png"),
            {"ours": lambda data: decode(data, SMALL), "Pillow": lambda data: with_pillow(data, SMALL, False)},
        ),
    }
    rates: dict[str, dict[str, dict[int, float]]] = {}
    for name, (data, sides) in cases.items():
        best = {side: {"1 thread": 0.0, "2 threads": 0.0, "CPU": 0.0} for side in sides}
        for _ in range(options.rounds):
            for side, work in sides.items():
                one, of_processor = rate(work, data, 1, options.seconds)
                two, _ = rate(work, data, 2, options.seconds)
                for measure, found in zip(best[side], (one, two, of_processor), strict=True):
                    best[side][measure] = max(best[side][measure], found)
        rates[name] = best
        print(f"{name} ({np.mean([len(file) for file in data]) / 1000:.1f} KB)")
        for side, found_rates in best.items():
            print(
                f"  {side:12}" + "".join(f"{value:10,.0f}/s {name}" for name, value in found_rates.items()), flush=True
            )
    cut = rates[f"JPEG {SIZE} → {CUT}, cut out"]
    shares = {measure: cut["ours"][measure] / bare for measure, bare in cut["simplejpeg"].items()}
    print(json.dumps({"cores": os.cpu_count(), "rates": rates, "share_of_bare": shares}, ensure_ascii=False))
    return int(shares["CPU"] < SHARE)


if __name__ == "__main__":
    sys.exit(main())
