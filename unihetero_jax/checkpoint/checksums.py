"""Sizes and checksums of a directory's files in one manifest, to find files that were truncated, changed or lost.

The manifest, ``checksums.json``, lies in the directory itself, so that it is renamed and removed with it. CRC-32
(zlib's) finds every burst of up to 32 wrong bits, misses other damage once in 4 billion, and needs nothing installed.
It does not protect against deliberate changes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unihetero_jax.files import write_atomic

MANIFEST = "checksums.json"

_ALGORITHM = "crc32"
_BLOCK = 1 << 22
# More do not make one disk faster.
_MOST_THREADS = 8

Entry = tuple[int, int]


def write(directory: Path) -> int:
    """Write the manifest of all files in a directory's subdirectories; ``complete`` adds those in the directory itself.

    Args:
      directory: of the files; an older manifest is replaced.

    Returns:
      The size of the files together, in bytes.

    Raises:
      OSError: a file cannot be read, or the manifest cannot be written.
    """
    nested = (path for path in _files(directory) if path.parent != directory)
    entries = {path.relative_to(directory).as_posix(): measure(path) for path in nested}
    _store(directory, entries)
    return sum(size for size, _ in entries.values())


def complete(directory: Path) -> None:
    """Add the files directly in a directory to its manifest, once they are final; do nothing without a manifest.

    Raises:
      OSError: as for ``write``.
    """
    entries = read(directory)
    if entries is None:
        return
    late = [path for path in _files(directory) if path.parent == directory and path.name not in entries]
    if late:
        _store(directory, entries | {path.name: measure(path) for path in late})


def read(directory: Path) -> dict[str, Entry] | None:
    """Read the size and checksum of each file, by its path in the directory; None without a manifest.

    Raises:
      ValueError: the manifest is damaged.
      OSError: it cannot be read.
    """
    try:
        content = (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    try:
        values: dict[str, Any] = json.loads(content)
        entries = {str(name): (int(size), int(crc)) for name, (size, crc) in values["files"].items()}
        intact = values["algorithm"] == _ALGORITHM and values["self"] == _own(entries)
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise ValueError(f"{MANIFEST}: damaged")
    return entries


def total(directory: Path) -> int:
    """Return the bytes of all files in the manifest; 0 where there is no readable one."""
    try:
        return sum(size for size, _ in (read(directory) or {}).values())
    except (OSError, ValueError):
        return 0


def damage(
    directory: Path, entries: Mapping[str, Entry], contents: bool = True, part: int = 0, parts: int = 1
) -> str | None:
    """Return the first damaged file of a manifest, and how it is damaged; None: all are intact.

    Args:
      directory: of the files.
      entries: of the manifest.
      contents: read the files; else check only their sizes.
      part: which share of the files is checked here, from 0.
      parts: number of shares, about equal in bytes.
    """
    largest_first = sorted(entries, key=lambda name: (-entries[name][0], name))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        found = pool.map(lambda name: _wrong(directory / name, entries[name], contents), largest_first[part::parts])
        wrong = {name: text for name, text in zip(largest_first[part::parts], found, strict=True) if text}
    return min((f"{name}: {text}" for name, text in wrong.items()), default=None)


def measure(path: Path) -> Entry:
    """Return the size and CRC-32 of a file, read in blocks.

    Raises:
      OSError: it cannot be read.
    """
    block = memoryview(bytearray(_BLOCK))
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            crc = zlib.crc32(block[:count], crc)
            size += count
    return size, crc


def _wrong(path: Path, expected: Entry, contents: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected[0]:
            return f"{size:,} bytes instead of {expected[0]:,}"
        return "other content than was written" if contents and measure(path) != expected else None
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _files(directory: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(directory, onerror=fail):
        yield from (Path(place) / name for name in sorted(names) if not name.startswith(f".{MANIFEST}"))


def _store(directory: Path, entries: Mapping[str, Entry]) -> None:
    kept = {name: entries[name] for name in sorted(entries) if name != MANIFEST}
    values = {"algorithm": _ALGORITHM, "self": _own(kept), "files": kept}
    write_atomic(directory / MANIFEST, json.dumps(values, indent=1))


def _own(entries: Mapping[str, Iterable[int]]) -> int:
    """Return the checksum of the manifest itself."""
    return zlib.crc32(json.dumps([[name, *entries[name]] for name in sorted(entries)]).encode())
