"""The tar reader agrees with the standard library's, and says where a file breaks."""

from __future__ import annotations

import gzip
import io
import random
import tarfile

import pytest
from given import write_tar

from unihetero_jax.data.ingest.tar import BrokenTar, is_compressed, members, open_tar, read_member

NAMES = [
    "a.txt",
    "./folder/b.jpg",
    "folder/" + "x" * 120 + ".txt",
    "deep/" * 40 + "c.txt",
    "ümläut/猫.jpg",
    "../../etc/passwd",
    "/absolute.txt",
    "empty.txt",
]


def content(name: str) -> bytes:
    return b"" if name.startswith("empty") else name.encode() * 37


def read(path, start=0, stop=None, into=None):
    found = [] if into is None else into
    with open_tar(path) as file:
        for member in members(file, start, stop):
            found.append((member.name, read_member(file, member)))
    return found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_it_reads_what_the_standard_library_writes(tmp_path, form, mode):
    names = [name for name in NAMES if form != tarfile.USTAR_FORMAT or len(name) < 130]
    path = write_tar(tmp_path / "a.tar", [(name, content(name)) for name in names], form, mode)
    assert read(path) == [(name, content(name)) for name in names]
    assert is_compressed(path) == (mode == "w:gz")


def test_links_devices_and_directories_are_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.FIFOTYPE,
            tarfile.DIRTYPE,
        ):
            member = tarfile.TarInfo("evil.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("good.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert read(path) == [("good.jpg", b"abc")]


def test_sizes_beyond_octal_digits_are_understood(tmp_path):
    """Such a member is 8 GB and more; its header alone says so here."""
    member = tarfile.TarInfo("large.bin")
    member.size = 9 << 30
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (tmp_path / "a.tar").write_bytes(member.tobuf(form))
        with open_tar(tmp_path / "a.tar") as file:
            assert next(members(file)).size == 9 << 30


def test_reading_may_begin_at_any_member_and_end_before_any(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(name, content(name)) for name in NAMES], tarfile.GNU_FORMAT)
    with open_tar(path) as file:
        headers = [member.header for member in members(file)]
    for first in range(len(NAMES)):
        for last in range(first, len(NAMES)):
            expected = [(name, content(name)) for name in NAMES[first:last]]
            assert read(path, headers[first], headers[last]) == expected


@pytest.mark.parametrize("compressed", [False, True])
def test_cut_off_anywhere_the_members_before_are_good(tmp_path, compressed):
    expected = [(f"{n}.txt", random.Random(n).randbytes(700)) for n in range(4)]
    whole = write_tar(tmp_path / "a.tar", expected).read_bytes()
    for size in (0, 1, 300, 512, 900, 1536, 1600, 3000, 4608, 6143, 6144, 6200):
        # What is random hardly shrinks: of the end of four members, a good part is missing.
        data = gzip.compress(whole)[: size // 3 + 10] if compressed else whole[:size]
        (tmp_path / "b.tar").write_bytes(data)
        found = []
        with pytest.raises(BrokenTar):
            read(tmp_path / "b.tar", into=found)
        assert found == expected[: len(found)]
        if not compressed:
            assert len(found) == sum(1536 * n + 512 + 700 <= size for n in range(4))
    assert len(found) >= 2


def test_damage_is_told_with_its_place(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.txt", b"x" * 100) for n in range(3)])
    data = bytearray(path.read_bytes())
    data[1024 + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenTar, match="no tar header at byte 1,024: bad checksum"):
        read(path)


def test_random_damage_is_never_anything_but_a_broken_tar(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(name, content(name)) for name in NAMES], tarfile.PAX_FORMAT)
    whole = path.read_bytes()
    generator = random.Random(0)
    broken = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 3, 40))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data[: generator.choice((len(data), generator.randrange(len(data))))])
        found = []
        try:
            read(path, into=found)
        except BrokenTar:
            broken += 1
        assert sum(len(content) for _, content in found) < path.stat().st_size
    # The rest is damaged within contents, of which a tar keeps no checksum.
    assert broken > 150
