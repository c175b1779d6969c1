"""Every kind of file that people keep: its right pixels, or a reason why it has none."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from pictures import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, chunk, encoded, png, scene, with_exif_orientation
from PIL import Image

from unihetero_jax.data.records import images
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import InvalidRecord

# Pytest has filters of its own; in a plain process nothing is printed (see the last test).
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

SCENE = scene(24, 32)
SQUARE = scene(32, 32)
DEEP = np.arange(0, 65536, 257 * 4 + 13)[:63].reshape(7, 9)[:7, :7]  # 16 bits; upper and lower byte differ


def over_white(grey: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Both in [0, 1], as 8 bits."""
    return 255 * (grey * alpha + 1 - alpha)


def stretched(picture: np.ndarray, size: int, box=None) -> np.ndarray:
    wanted = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(wanted)


def assert_close(made: np.ndarray, expected: np.ndarray, most: float):
    assert made.dtype == np.uint8
    assert made.shape == expected.shape
    assert np.abs(made.astype(float) - expected).mean() <= most


def reason(data: bytes, size: int = 8, **options) -> str:
    with pytest.raises(InvalidRecord) as caught:
        decode(data, size, **options)
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["png", "bmp", "ppm", "gif", "webp", "avif", "jpeg"])
def test_formats_are_told_from_their_bytes(kind):
    options = {"jpeg": {"quality": 95, "subsampling": 0}, "webp": {"quality": 95}, "avif": {"quality": 95}}
    data = encoded(SQUARE, kind, **options.get(kind, {}))
    most = 0 if kind in ("png", "bmp", "ppm") else 3
    assert_close(decode(data, 32), SQUARE, most)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("size", [10, 20, 31, 32, 56, 70])
def test_other_sizes_are_resampled_and_antialiased(kind, size):
    options = {"quality": 98, "subsampling": 0} if kind == "jpeg" else {}
    assert_close(decode(encoded(scene(61, 64), kind, **options), size), stretched(scene(61, 64), size), 1.5)
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    made = decode(encoded(stripes, kind, **options), size)[2:-2, 2:-2]
    assert np.abs(made.astype(int) - 127).max() <= 40, "stripes of a pixel come out grey"


def test_a_large_jpeg_is_read_at_a_fraction(monkeypatch):
    decoded = []
    plain = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: decoded.append(made := plain(*a, **k)) or made)
    data = encoded(scene(800, 640), "jpeg", quality=95)
    for size, fit in ((50, "stretch"), (80, "crop"), (100, "pad"), (90, "pad"), (300, "crop"), (640, "crop")):
        decode(data, size, fit=fit)
    assert [made.shape[0] for made in decoded] == [100, 100, 100, 200, 500, 800]
    assert_close(decode(data, 50), stretched(scene(800, 640), 50), 1)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_flip_mirrors_what_would_be_seen(kind, fit):
    data = with_exif_orientation(encoded(SCENE, "jpeg"), 6) if kind == "jpeg" else encoded(SCENE)
    made = decode(data, 16, fit=fit, crop=(0.1, 0.7), flip=True)
    np.testing.assert_array_equal(made[:, ::-1], decode(data, 16, fit=fit, crop=(0.1, 0.7)))
    assert made.flags.c_contiguous


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("crop", [(0.5, 0.5), (0.0, 0.0), (1.0, 0.25)])
def test_crop_cuts_a_square_out(kind, crop):
    wide = scene(40, 100)
    data = encoded(wide, kind, **({"quality": 98, "subsampling": 0} if kind == "jpeg" else {}))
    left = 60 * crop[0]
    assert_close(decode(data, 20, fit="crop", crop=crop), stretched(wide, 20, (left, 0, left + 40, 40)), 2)
    share = decode(data, 16, fit="crop", crop=crop, share=0.5)
    box = (80 * crop[0], 20 * crop[1], 80 * crop[0] + 20, 20 * crop[1] + 20)
    assert_close(share, stretched(wide, 16, box), 2)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_square_of_the_wanted_size_is_cut_out_without_resampling(kind):
    data = encoded(scene(40, 50), kind)
    whole = simplejpeg.decode_jpeg(data) if kind == "jpeg" else scene(40, 50)
    made = decode(data, 35, fit="crop", crop=(1.0, 0.0), share=35 / 40)
    np.testing.assert_array_equal(made, whole[:35, 15:])


def test_pad_keeps_everything_in_a_grey_square():
    made = decode(encoded(scene(20, 60)), 30, fit="pad")
    wanted = np.asarray(Image.fromarray(scene(20, 60)).resize((30, 10), Image.Resampling.BICUBIC))
    assert_close(made[10:20], wanted, 1)
    assert (made[:10] == 127).all()
    assert (made[20:] == 127).all()


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3000, 1), (2, 2)])
def test_tiny_and_long_pictures(fit, shape):
    flat = np.full((*shape, 3), (10, 90, 200), np.uint8)
    for kind in ("png", "jpeg"):
        made = decode(encoded(flat, kind), 8, fit=fit)
        assert made.shape == (8, 8, 3)
        assert np.abs(made[3, 3].astype(int) - (10, 90, 200)).max() <= 6


UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored.transpose(1, 0, 2), 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9])
def test_exif_rotation(orientation):
    upright = UPRIGHT.get(orientation, UPRIGHT[1])(SCENE)
    data = with_exif_orientation(encoded(SCENE, "jpeg", quality=98, subsampling=0), orientation)
    assert_close(decode(data, 20), stretched(upright, 20), 2)
    height, width = upright.shape[:2]
    crop = (0.0, 0.0, 24, 24)
    assert_close(decode(data, 20, fit="crop", crop=(0.0, 0.0)), stretched(upright, 20, crop), 2)
    padded = decode(data, 32, fit="pad")
    inside = padded[(32 - height) // 2 :, (32 - width) // 2 :][:height, :width]
    assert_close(inside, upright, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("png", "webp", "avif"):
        assert_close(decode(encoded(SCENE, kind, exif=exif.tobytes()), 20), stretched(upright, 20), 3)


def test_exif_that_is_broken_turns_nothing():
    data = with_exif_orientation(encoded(SQUARE, "jpeg", quality=98, subsampling=0), 6)
    place = data.index(b"MM\0*")
    for broken in (data[:place] + b"XX" + data[place + 2 :], data[: place + 4] + b"\xff" * 4 + data[place + 8 :]):
        assert_close(decode(broken, 32), SQUARE, 2)


def test_jpegs_that_begin_alike_are_told_apart():
    """A comment before the headers that differ, with what looks like a scan in it; twice, as headers are remembered."""
    comment = b"\xff\xfe" + (6 + 2).to_bytes(2) + b"\xff\xda\0\4\1\2"
    for _ in range(2):
        for orientation in (1, 3, 6):
            for picture in (SQUARE, SCENE):
                plain = with_exif_orientation(encoded(picture, "jpeg", quality=98, subsampling=0), orientation)
                upright = UPRIGHT[orientation](picture)
                for data in (plain, plain[:2] + comment + plain[2:]):
                    assert_close(decode(data, 20), stretched(upright, 20), 2)


def test_jpegs_that_begin_alike_share_a_header():
    images._known_header.cache_clear()
    for seed in range(5):
        decode(encoded(scene(32, 32, seed), "jpeg", quality=98), 32)
    assert images._known_header.cache_info().hits == 4


def test_a_jpeg_that_ends_in_the_head_of_its_scan():
    data = encoded(SQUARE, "jpeg")
    scan = data.index(b"\xff\xda")
    assert {reason(data[: scan + kept]) for kept in range(12)} == {"undecodable"}


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_ink(subsampling, progressive):
    inks = Image.fromarray(SQUARE).convert("CMYK")
    adobe = encoded(inks, "jpeg", quality=98, subsampling=subsampling, progressive=progressive)
    assert_close(decode(adobe, 32), SQUARE, 2)
    # The same bytes without Adobe's marker hold ink, not 255 − ink.
    place = adobe.index(b"\xff\xee")
    length = int.from_bytes(adobe[place + 2 : place + 4])
    inverted = Image.fromarray(255 - np.asarray(inks), "CMYK")
    plain = encoded(inverted, "jpeg", quality=98, subsampling=subsampling, progressive=progressive)
    plain = plain[:place] + plain[place + 2 + length :]
    assert_close(decode(plain, 32), SQUARE, 2)


def test_jpeg_of_ink_in_luma_and_chroma():
    """YCCK, as Photoshop writes it: the marker's transform is 2, and luma and chroma are those of 255 − RGB."""
    parts = np.asarray(Image.fromarray(255 - SQUARE).convert("YCbCr"))
    no_black = np.zeros((32, 32, 1), np.uint8)
    stored = Image.fromarray(np.concatenate([255 - parts, no_black], -1), "CMYK")
    data = bytearray(encoded(stored, "jpeg", quality=98, subsampling=0))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    assert simplejpeg.decode_jpeg_header(bytes(data))[2] == "YCCK"
    assert_close(decode(bytes(data), 32), SQUARE, 2)


def test_other_jpegs():
    grey = SQUARE[..., 0]
    assert_close(decode(encoded(grey, "jpeg", quality=98), 32), np.repeat(grey[..., None], 3, -1), 2)
    assert_close(decode(encoded(SQUARE, "jpeg", quality=98, keep_rgb=True), 32), SQUARE, 2)
    several = encoded(Image.fromarray(SQUARE), "mpo", save_all=True, append_images=[Image.fromarray(SQUARE[::-1])])
    assert_close(decode(several, 32), SQUARE, 3)
    assert_close(decode(encoded(SQUARE, "jpeg", quality=98, restart_marker_blocks=2) + b"behind it", 32), SQUARE, 2)


def test_png_of_16_bits_is_scaled_not_clipped():
    made = decode(png(DEEP, GREY, 16), 7)
    assert np.abs(made - DEEP[..., None] / 257).max() <= 1
    colors = np.stack([DEEP, DEEP[::-1], DEEP.T], -1)
    assert np.abs(decode(png(colors, RGB, 16), 7) - colors / 257).max() <= 1
    with_alpha = np.stack([DEEP, DEEP.T], -1)
    wanted = over_white(DEEP / 65535, DEEP.T / 65535)[..., None]
    assert np.abs(decode(png(with_alpha, GREY_ALPHA, 16), 7) - wanted).max() <= 2
    pgm = b"P5 7 7 65535\n" + DEEP.astype(">u2").tobytes()
    assert np.abs(decode(pgm, 7) - DEEP[..., None] / 257).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_png_with_one_transparent_grey(depth):
    top = 2**depth - 1
    greys = np.linspace(0, top, 49).round().astype(int).reshape(7, 7)
    clear = int(greys[1, 1])
    made = decode(png(greys, GREY, depth, chunk(b"tRNS", struct.pack(">H", clear))), 7)
    wanted = np.where(greys == clear, 255, greys / top * 255)[..., None]
    assert np.abs(made - wanted).max() <= 1
    assert (wanted != greys[..., None] / top * 255).any()


@pytest.mark.parametrize("depth", [8, 16])
def test_png_with_one_transparent_color(depth):
    colors = np.stack([DEEP, DEEP[::-1], DEEP.T], -1)
    colors = colors >> 8 if depth == 8 else colors
    clear = chunk(b"tRNS", struct.pack(">HHH", *colors[2, 3].tolist()))
    wanted = colors / (2**depth - 1) * 255
    wanted[2, 3] = 255
    assert np.abs(decode(png(colors, RGB, depth, clear), 7) - wanted).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_with_a_palette(depth):
    count = 2**depth
    palette = np.random.default_rng(depth).integers(0, 256, (count, 3))
    alpha = np.arange(count) * 255 // (count - 1)
    index = np.arange(49).reshape(7, 7) % count
    colors = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    np.testing.assert_array_equal(decode(png(index, PALETTE, depth, colors), 7), palette[index])
    clear = chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
    wanted = over_white(palette[index] / 255, alpha[index][..., None] / 255)
    assert np.abs(decode(png(index, PALETTE, depth, colors + clear), 7) - wanted).max() <= 1


def test_what_is_transparent_is_white():
    alpha = np.linspace(0, 255, 1024).round().astype(int).reshape(32, 32, 1)
    wanted = over_white(SQUARE / 255, alpha / 255)
    assert np.abs(decode(png(np.concatenate([SQUARE, alpha], -1), RGB_ALPHA), 32) - wanted).max() <= 1
    grey = np.concatenate([SQUARE[..., :1], alpha], -1)
    assert np.abs(decode(png(grey, GREY_ALPHA), 32) - wanted[..., :1]).max() <= 1
    webp = Image.fromarray(np.concatenate([SQUARE, alpha], -1).astype(np.uint8))
    assert_close(decode(encoded(webp, "webp", lossless=True, exact=True), 32), wanted, 1)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.fromarray(np.full((16, 16, 3), shade, np.uint8)) for shade in (40, 120, 200)]
    options = {"lossless": True} if kind == "webp" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    np.testing.assert_array_equal(decode(data, 16), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp", "bmp", "avif", "ppm"])
def test_truncated_files_have_no_picture(kind):
    data = encoded(scene(64, 64), kind)
    for part in (0, 1, 3, 10, len(data) // 3, len(data) // 2, len(data) * 9 // 10, len(data) - 20):
        assert reason(data[:part]) == "undecodable"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1000,
        b"<html>404</html>",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"\xff\xd8\xff\xd9",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encoded(SQUARE, "tiff"),
        encoded(SQUARE, "png").replace(b"IHDR", b"IHDS"),
    ],
)
def test_what_is_no_picture(data):
    assert reason(data) == "undecodable"


def test_damage_that_a_file_can_show_is_found():
    """PNG has sums of its chunks; JPEG shows damage when its code breaks off."""
    chance = random.Random(0)
    data = encoded(scene(64, 64))
    for _ in range(100):
        place = chance.randrange(len(data))
        broken = data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
        assert reason(broken) == "undecodable"


def test_a_jpeg_of_endless_scans_is_refused_at_once():
    data = encoded(SQUARE, "jpeg", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(InvalidRecord, match="a JPEG of 210 scans") as caught:
        decode(data[:-2] + scan * 200 + data[-2:], 32)
    assert caught.value.reason == "undecodable"


def test_pictures_of_too_many_pixels():
    small = np.zeros((4, 4), int)
    assert reason(png(small, GREY, size=(100_000, 100_000))) == "too_large"
    assert reason(png(small, GREY, size=(12_000, 12_000))) == "too_large"
    assert reason(encoded(scene(100, 100)), max_pixels=9_999) == "too_large"
    decode(encoded(scene(100, 100)), 8, max_pixels=10_000)
    jpeg = encoded(scene(400, 400), "jpeg")
    assert_close(decode(jpeg, 8, max_pixels=10_000), stretched(scene(400, 400), 8), 2)
    assert reason(jpeg, 300, max_pixels=10_000) == "too_large"
    # All of a progressive JPEG is in memory before anything is seen of it.
    assert reason(encoded(scene(400, 400), "jpeg", progressive=True), max_pixels=10_000) == "too_large"


def test_memory_and_the_terminal_stay_as_they_are():
    """20,000 pixels a side within 400 MB, and not a word on stdout or stderr, whatever the bytes are."""
    program = """
import random, resource, sys
import numpy as np, simplejpeg
from pictures import *
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.invalid import InvalidRecord
tile = simplejpeg.encode_jpeg(np.full((200, 20000, 1), 90, np.uint8), colorspace="gray")
# The header says 20,000 x 20,000; its scan is that of 100 such strips, which a restart marker sets apart.
start = tile.index(b"\\xff\\xda")
start += 2 + int.from_bytes(tile[start + 2:start + 4])
interval = b"\\xff\\xdd\\0\\4" + (25 * 2500).to_bytes(2) if 25 * 2500 < 65536 else b""
frame = tile.index(b"\\xff\\xc0")
head = tile[:frame + 5] + (20000).to_bytes(2) + tile[frame + 7:start]
head = head[:2] + interval + head[2:]
body = b"".join(tile[start:-2] + b"\\xff" + bytes([0xd0 + part % 8]) for part in range(100))[:-2]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = decode(head + body + b"\\xff\\xd9", 224)
assert np.abs(made.astype(int) - 90).max() <= 1
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
chance = random.Random(0)
for kind in ("jpeg", "png", "gif", "webp", "bmp", "avif", "ppm", "tiff"):
    for count in range(25):
        data = bytearray(encoded(scene(30, 30), kind))
        for _ in range(1 + count % 4):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            decode(bytes(data), 16)
        except InvalidRecord:
            pass
for size in ((100_000, 100_000), (12_000, 12_000)):
    try:
        decode(png(np.zeros((4, 4), int), GREY, size=size), 8)
    except InvalidRecord:
        pass
palette = encoded(Image.fromarray(scene(9, 9)).convert("P"), transparency=bytes(range(256)))
decode(palette, 9)
"""
    here = Path(__file__).resolve()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join([str(here.parent), str(here.parents[2]), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
