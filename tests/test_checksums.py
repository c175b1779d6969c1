"""What became of a directory's files since their checksums were written."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from unihetero_jax.checkpoint import checksums
from unihetero_jax.checkpoint.checksums import MANIFEST


@pytest.fixture
def place(tmp_path) -> Path:
    """Three files below and one in a directory, with a manifest."""
    for name, content in (("state/a", b"weights" * 1000), ("state/d/b", b"\0" * 5000), ("data/c", b""), ("top", b"x")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert checksums.write(tmp_path) == 12000
    return tmp_path


def damage(place: Path, **options) -> str | None:
    entries = checksums.read(place)
    assert entries is not None
    return checksums.damage(place, entries, **options)


def test_untouched_files_are_good(place):
    assert damage(place) is None
    assert checksums.read(place)["state/a"] == (7000, zlib.crc32(b"weights" * 1000))
    assert checksums.total(place) == 12000


def test_every_single_wrong_bit_is_found(place):
    content = (place / "state/a").read_bytes()
    for bit in (0, 1, 4095 * 8 + 7, len(content) * 8 - 1):
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        (place / "state/a").write_bytes(spoilt)
        assert damage(place) == "state/a: other content than was written"
        assert damage(place, contents=False) is None


@pytest.mark.parametrize("contents", [True, False])
def test_what_is_cut_off_or_lost_is_found_by_sizes_too(place, contents):
    (place / "state/a").write_bytes(b"weights" * 999)
    assert damage(place, contents=contents) == "state/a: 6,993 bytes instead of 7,000"
    (place / "state/a").unlink()
    assert damage(place, contents=contents) == "state/a: missing"


def test_a_file_is_looked_at_by_one_of_several(place):
    (place / "data/c").write_bytes(b"more")
    found = [damage(place, part=part, parts=2) for part in range(2)]
    assert sorted(map(str, found)) == ["None", "data/c: 4 bytes instead of 0"]


def test_any_wrong_bit_of_the_manifest_is_found(place):
    content = (place / MANIFEST).read_bytes()
    for bit in range(len(content) * 8):
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        (place / MANIFEST).write_bytes(spoilt)
        with pytest.raises(ValueError, match=r"checksums\.json: damaged"):
            checksums.read(place)
    assert checksums.total(place) == 0


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"files": []}', b"\xff", json.dumps({"files": {}}).encode()])
def test_what_is_no_manifest_is_damaged(place, content):
    (place / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=r"checksums\.json: damaged"):
        checksums.read(place)


def test_files_beside_the_subdirectories_are_added_once_they_are_final(place):
    (place / "top").write_bytes(b"final")
    assert damage(place) is None
    checksums.complete(place)
    assert checksums.read(place)["top"] == (5, zlib.crc32(b"final"))
    (place / "top").write_bytes(b"Final")
    assert damage(place) == "top: other content than was written"


def test_without_a_manifest_nothing_is_said_and_nothing_added(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert checksums.read(tmp_path) is None
    checksums.complete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
