"""Damaged images, records and shards, each the same for the same number; and what becomes of them.

Cases run in a process that is watched: one that ends or is silent for too long is a finding, too. An outcome is one of

  same          what was written came back
  left out      an error of the kind that is skipped and counted
  refused       the dataset is refused before anything is read of it
  undetectable  something else came back, of a format that has no sums to know by
  wrong: …      something else came back
  crash: …      an error that nobody expects, or the end of the process
  hang          no answer in time
"""

from __future__ import annotations

import collections
import functools
import logging
import multiprocessing
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from coder import WordCoder
from pictures import GREY, PALETTE, RGB, RGB_ALPHA, chunk, encoded, png, scene, with_exif_orientation
from PIL import Image
from streams import batch_stream

from unihetero_jax.data.packing.packed_batch import RowShape
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.example import parse, serialize
from unihetero_jax.data.records.images import FITS, decode
from unihetero_jax.data.records.invalid import InvalidRecord
from unihetero_jax.data.records.manifest import MANIFEST_FILE, Manifest, describe_files, write_manifest
from unihetero_jax.data.records.record import Record, Turn
from unihetero_jax.data.records.shards import Dataset, Split
from unihetero_jax.errors import UsageError

FINE = ("same", "left out", "refused", "undetectable")
# Of about 900 bytes: a file is filled up to blocks of 64 KB, and damage there is none.
RECORDS = 64
# What a process may take to start and to import everything.
STARTING_S = 120.0
SPLIT = "train_vqa"
_SHARD = f"set-{SPLIT}.array_record-00000-of-00001"


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four damages: bits, bytes and stretches changed, lost, doubled, filled with zeros, or the end cut off."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        place = chance.randrange(len(made) + 1)
        length = chance.choice((1, 2, 8, 64, 512))
        kind = chance.randrange(8)
        if kind <= 1 and place < len(made):
            made[place] ^= 1 << chance.randrange(8)
        elif kind == 2 and place < len(made):
            made[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 3:
            made[place : place + length] = chance.randbytes(len(made[place : place + length]))
        elif kind == 4:
            made[place : place + length] = bytes(len(made[place : place + length]))
        elif kind == 5:
            del made[place : place + length]
        elif kind == 6:
            made[place:place] = made[place : place + length]
        elif kind == 7:
            del made[place:]
    return bytes(made)


@functools.cache
def images() -> tuple[tuple[str, bytes], ...]:
    """Files of every kind, by name."""
    small, alpha = scene(40, 48), np.full((40, 48, 1), 90, np.uint8)
    frames = [Image.fromarray(scene(40, 48, seed)) for seed in range(3)]
    rest: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    jpeg = encoded(small, "jpeg", quality=85)
    palette = chunk(b"PLTE", bytes(range(192)) * 4) + chunk(b"tRNS", bytes(range(256)))
    return (
        ("jpeg", jpeg),
        ("jpeg", encoded(small, "jpeg", progressive=True)),
        ("jpeg", encoded(small, "jpeg", subsampling=0, restart_marker_blocks=4)),
        ("jpeg", encoded(small[..., 0], "jpeg")),
        ("jpeg", encoded(frames[0].convert("CMYK"), "jpeg")),
        ("jpeg", with_exif_orientation(jpeg, 6)),
        ("png", encoded(small)),
        ("png", png(small.astype(int) * 257, RGB, 16)),
        ("png", png(small[..., 0].astype(int) * 200, GREY, 16, chunk(b"tRNS", b"\0\1"))),
        ("png", png(np.concatenate([small, alpha], -1), RGB_ALPHA)),
        ("png", png(small[..., 0] // 4, PALETTE, 8, palette)),
        ("png", encoded(frames[0], "png", **rest)),
        ("gif", encoded(frames[0], "gif", **rest)),
        ("webp", encoded(small, "webp")),
        ("webp", encoded(frames[0], "webp", lossless=True, **rest)),
        ("avif", encoded(small, "avif")),
        ("bmp", encoded(small, "bmp")),
        ("ppm", encoded(small, "ppm")),
    )


def image_case(number: int) -> str:
    """A damaged file, at a size and in a fit of its own."""
    chance = random.Random(number)
    kind, data = images()[number % len(images())]
    damaged = mutate(data, chance)
    size, fit = chance.choice((8, 40, 100)), chance.choice(FITS)
    try:
        made = decode(damaged, size, fit=fit)
    except InvalidRecord:
        return "left out"
    if made.shape != (size, size, 3) or made.dtype != np.uint8:
        return f"wrong: {made.shape} of {made.dtype}"
    if np.array_equal(made, decode(data, size, fit=fit)):
        return "same"
    return "wrong: a PNG with other pixels" if kind == "png" else "undetectable"


def make_record(number: int) -> Record:
    """A record with a picture and a conversation of its own."""
    turns = (
        Turn("human", f"<image> what n{number}"),
        Turn("gpt", f"n{number} words"),
        Turn("human", "é"),
        Turn("gpt", "n1"),
    )
    return Record(f"a/{number:04}", (encoded(scene(16, 16, number), "jpeg"),), turns, "vqa", '{"n": 1}')


class _Damaged:
    """One damaged record, and whole ones behind it."""

    def __init__(self, data: bytes):
        self._data = data

    def __getitem__(self, position: int) -> dict[str, Any]:
        return parse(self._data if position == 0 else serialize(make_record(position % 7)))


def _first_row(data: bytes) -> tuple[bool, np.ndarray, np.ndarray]:
    """Whether the record was skipped, and the tokens and the pictures of a row that begins with it."""
    stream = batch_stream(
        _Damaged(data),
        WordCoder(),
        dict.fromkeys((Role.INPUT, Role.TARGET, Role.BOTH), 2),
        RowShape(slots=60, images=4, image_size=16),
        batch_size=1,
        rows=[0],
        window=2,
        threads=1,
        read_ahead=1,
        max_bad_records=1,
    )
    try:
        batch, state = next(stream)
    finally:
        stream.close()
    return bool(state["skipped"].sum()), batch["tokens"], batch["images"]


def record_case(number: int) -> str:
    """A record whose bytes are damaged, as training reads it. Records have no sums; the shards around them do."""
    data = serialize(make_record(number % 7))
    damaged = mutate(data, random.Random(number))
    skipped, tokens, pictures = _first_row(damaged)
    if skipped:
        return "left out"
    _, wanted_tokens, wanted_pictures = _first_row(data)
    same = np.array_equal(tokens, wanted_tokens) and np.array_equal(pictures, wanted_pictures)
    return "same" if same else "undetectable"


@functools.cache
def shard() -> tuple[tuple[bytes, ...], bytes]:
    """Records, and the file that holds them."""
    records = tuple(serialize(make_record(number)) for number in range(RECORDS))
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/{_SHARD}"
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.close()
        return records, Path(path).read_bytes()


def shard_case(number: int) -> str:
    """A file of records, damaged behind the manifest's back; every record is read, in an order of its own.

    One of another size is refused for that; it is then read all the same, with a manifest of its new size.
    """
    chance = random.Random(number)
    records, data = shard()
    damaged = mutate(data, chance)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / _SHARD
        path.write_bytes(data)
        counts, shards = {SPLIT: RECORDS}, {SPLIT: [RECORDS]}
        write_manifest(place, Manifest("set", {}, counts, describe_files(place), shards=shards))
        path.write_bytes(damaged)
        if len(damaged) != len(data):
            try:
                Dataset(Path(place))
                return "wrong: a shard of another size is not refused"
            except UsageError:
                (Path(place) / MANIFEST_FILE).unlink()
                write_manifest(place, Manifest("set", {}, counts, describe_files(place), shards=shards))
        return _read_shard(Dataset(Path(place)).split(SPLIT), records, chance)


def _read_shard(split: Split, records: tuple[bytes, ...], chance: random.Random) -> str:
    outcome = "same"
    for index in chance.sample(range(RECORDS), RECORDS):
        try:
            record = split.bytes(index)
        except UsageError:
            return "refused"
        except OSError:  # which a stream counts as unreadable
            outcome = "left out"
            continue
        if record != records[index]:
            return f"wrong: record {index} is another"
    return outcome


def _work(case: Callable[[int], str], connection: Any) -> None:
    logging.disable(logging.WARNING)
    while (number := connection.recv()) is not None:
        try:
            outcome = case(number)
        except BaseException as error:
            outcome = f"crash: case {number}: {type(error).__name__}: {error}"
        connection.send(outcome)


def run(case: Callable[[int], str], numbers: range, limit_s: float) -> collections.Counter[str]:
    """Outcomes of a case by number, each within ``limit_s`` seconds.

    They run one after another in another process, and in a new one after the end of that.
    """
    context = multiprocessing.get_context("spawn")
    outcomes: collections.Counter[str] = collections.Counter()
    process = None
    for number in numbers:
        if process is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(case, theirs), daemon=True)
            process.start()
            theirs.close()
            patience = limit_s + STARTING_S
        ours.send(number)
        try:
            outcome = ours.recv() if ours.poll(patience) else f"hang: case {number}"
        except EOFError:
            process.join()
            outcome = f"crash: case {number}: the process ended with {process.exitcode}"
        outcomes[outcome] += 1
        patience = limit_s
        if outcome.startswith("hang") or not process.is_alive():
            process.kill()
            process.join()
            process = None
    if process is not None:
        ours.send(None)
        process.join()
    return outcomes
