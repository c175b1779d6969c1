"""Steps: bounds by the header, smaller pictures, and nothing that a bad picture could break."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from given import picture
from PIL import Image

from unihetero_jax.data.ingest.importer import Refused
from unihetero_jax.data.ingest.settings import Steps
from unihetero_jax.data.ingest.steps import apply, digest
from unihetero_jax.data.records.images import decode, reduce
from unihetero_jax.data.records.record import Record, Turn
from unihetero_jax.errors import UsageError


def record(*images: bytes, answer: str = "a watch", task="caption", asked: str = "Describe", key: str = "k") -> Record:
    return Record(key, images, (Turn("human", "<image>\n" * len(images) + asked), Turn("gpt", answer)), task)


def reason(steps: Steps, made: Record) -> str:
    with pytest.raises(Refused) as caught:
        apply(steps, made)
    return caught.value.reason


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def header_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and has no more to say."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    empty = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, empty)
    )


def test_without_bounds_a_record_is_left_as_it_is():
    made = record(picture(1), picture(2, kind="PNG"))
    assert apply(Steps(), made) is made
    text = Record("k", (), (Turn("gpt", ""),), "text")
    assert apply(Steps(resize=8, min_side=4), text) is text


def test_larger_pictures_are_reduced_to_the_shortest_side_as_jpeg():
    made = apply(Steps(resize=32), record(picture(1, (100, 64)), picture(2, (64, 100), "PNG"), picture(3, (32, 500))))
    assert [opened(data).size for data in made.images] == [(50, 32), (32, 50), (32, 500)]
    assert [opened(data).format for data in made.images] == ["JPEG"] * 3
    # What is small enough is not encoded once more.
    assert made.images[2] == picture(3, (32, 500))
    sizes = [len(apply(Steps(resize=32, quality=q), record(picture(1, (64, 64)))).images[0]) for q in (30, 95)]
    assert sizes[0] < sizes[1]


def test_reducing_keeps_the_picture():
    smooth = np.linspace(0, 255, 256, dtype=np.uint8)[None, :, None] * np.ones((256, 1, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, "JPEG", quality=95)
    reduced = np.asarray(opened(apply(Steps(resize=64), record(file.getvalue())).images[0])).astype(int)
    assert abs(reduced[:, :, 0].mean(0) - np.linspace(0, 255, 64)).max() < 4


def test_rotation_in_the_metadata_is_applied():
    file = io.BytesIO()
    image = Image.new("RGB", (80, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    reduced = opened(apply(Steps(resize=20), record(file.getvalue())).images[0])
    assert reduced.size == (20, 40)
    assert not reduced.getexif()


@pytest.mark.parametrize(
    ("mode", "kind", "shade", "expected"),
    [
        ("L", "PNG", 90, (90, 90, 90)),
        ("P", "PNG", 0, None),
        ("CMYK", "JPEG", (0, 0, 0, 0), (255, 255, 255)),
        ("I;16", "PNG", 40_000, (156, 156, 156)),
        ("RGBA", "PNG", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", "WEBP", (10, 200, 30, 255), (10, 200, 30)),
        ("LA", "PNG", (7, 255), (7, 7, 7)),
        ("1", "PNG", 1, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(mode, kind, shade, expected):
    file = io.BytesIO()
    Image.new(mode, (40, 40), shade).save(file, kind)
    reduced = opened(apply(Steps(resize=16), record(file.getvalue())).images[0])
    assert (reduced.mode, reduced.size) == ("RGB", (16, 16))
    if expected is not None:
        assert np.abs(np.asarray(reduced).astype(int) - np.array(expected)).max() <= 6


@pytest.mark.parametrize(
    ("steps", "size", "why"),
    [
        (Steps(min_side=10), (9, 100), "too_small"),
        (Steps(max_side=99), (9, 100), "too_large"),
        (Steps(max_aspect=3), (10, 31), "aspect"),
        (Steps(max_pixels=99), (10, 10), "too_many_pixels"),
    ],
)
def test_bounds_of_a_picture(steps, size, why):
    assert reason(steps, record(picture(1, size))) == why
    assert apply(Steps(), record(picture(1, size)))


@pytest.mark.parametrize(
    "data", [b"", b"no image", picture(1)[:20], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture(data):
    assert reason(Steps(), record(data)) == ("undecodable" if data else "empty_image")


def test_what_is_cut_off_is_told_when_it_is_decoded():
    whole = picture(1, (64, 64))
    assert reason(Steps(resize=16), record(whole[: len(whole) // 2])) == "undecodable"


@pytest.mark.parametrize("size", [(20_000, 20_000), (12_000, 12_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_picture_is_never_decoded(size):
    tracemalloc.start()
    try:
        assert reason(Steps(resize=16), record(header_of(*size))) == "too_many_pixels"
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("steps", "bad", "good", "why"),
    [
        (Steps(min_text=5), " abcd ", "<image> abcde", "text_too_short"),
        (Steps(max_text=5), "abcdef", " abcde ", "text_too_long"),
        (Steps(max_text=3), "<image> abcd", "<image> abc", "text_too_long"),
    ],
)
def test_bounds_of_the_text(steps, bad, good, why):
    assert reason(steps, record(picture(1), answer=bad)) == why
    assert apply(steps, record(picture(1), answer=good))


def test_a_request_for_a_picture_is_not_measured_by_its_reply():
    made = Record("k", (picture(1),), (Turn("human", "draw a cat"), Turn("gpt", "<image>")), "generation")
    assert apply(Steps(min_text=5), made) is made


def test_two_are_the_same_by_pictures_and_words():
    first = record(picture(1), key="a", asked="Describe it.")
    assert digest(first) == digest(record(picture(1), key="b", asked="What is this?"))
    assert digest(first) != digest(record(picture(2), key="a", asked="Describe it."))
    assert digest(first) != digest(record(picture(1), answer="a clock"))
    asked = [record(picture(1), task="vqa", answer="yes", asked=words) for words in ("red?", "green?")]
    assert digest(asked[0]) != digest(asked[1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quality": 0}, "quality=0"),
        ({"resize": -1}, "resize=-1"),
        ({"max_aspect": 0.5}, "max_aspect=0.5"),
        ({"min_side": 9, "max_side": 8}, "min_side=9 is above max_side=8"),
        ({"max_pixels": 10**9}, "max_pixels=1000000000"),
    ],
)
def test_impossible_steps_are_named(change, named):
    with pytest.raises(UsageError, match=named):
        Steps(**change)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_reduced_to_what_would_be_read_of_it(orientation):
    """Upright, and as sharp: that it was made smaller before is not seen."""
    smooth = np.linspace(0, 255, 120, dtype=np.float32)
    shades = np.stack([np.broadcast_to(smooth, (120, 120)), np.broadcast_to(smooth[:, None], (120, 120))], axis=-1)
    image = Image.fromarray(np.concatenate([shades, shades[..., :1] / 2], axis=-1).astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        image.save(file, kind, exif=exif)
        assert (reduce(file.getvalue(), 40) == decode(file.getvalue(), 40, fit="crop")).all()
        stored = apply(Steps(resize=40, quality=95), record(file.getvalue())).images[0]
        off = np.abs(decode(stored, 40).astype(int) - decode(file.getvalue(), 40, fit="crop"))
        assert off.mean() < 2
