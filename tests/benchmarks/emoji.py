"""The emoji set as a table beside images and as WebDataset tars: both imported, and compared record by record.

    npm pack emoji-datasource-google && tar -xzf emoji-datasource-google-*.tgz
    python tests/benchmarks/emoji.py package --out=data/emoji

The npm package (its pictures are Google's Noto Emoji, 64 pixels a side, with alpha) has about 3,800 emojis and their
names. Makes under --out: ``captions.csv`` and ``tars/``; and from these, through ``unihetero data import``, the
datasets ``folder`` and ``webdataset``. A tenth of the records, by the hash of their key, is the test set. The names of
skin tones follow the emoji's own, as Unicode has them. Prints counts and seconds. Exit code 1 when the two datasets do
not hold the same records in the same splits.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from unihetero_jax import cli
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.shards import Dataset

IMAGES = Path("img/google/64")
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
TAR, PER_TAR = "emoji-{:02d}", 1000
COMMON = ("--test_share=0.1", "--vocabulary_size=1000", "--name=emoji")


def emojis(package: Path) -> list[dict[str, str]]:
    """Image, caption and category of every emoji of the set, and a key as the tars give it."""
    rows: list[dict[str, str]] = []
    for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        # Several code points may make one emoji of two people, each of a tone.
        tones = {"": entry} | entry.get("skin_variations", {})
        for codes, shown in tones.items():
            if not shown["has_img_google"]:
                continue
            words = [entry["name"].lower(), ", ".join(TONES[code] for code in codes.split("-") if code)]
            rows.append({"image": shown["image"], "caption": ": ".join(filter(None, words))})
            rows[-1] |= {"category": entry["category"], "key": ""}
    for number, row in enumerate(rows):
        row["key"] = f"{TAR.format(number // PER_TAR)}/{Path(row['image']).stem}"
    return rows


def write_table(rows: list[dict[str, str]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tars(rows: list[dict[str, str]], images: Path, directory: Path) -> None:
    """Tars as img2dataset makes them: a picture, its caption, and what else is known as JSON."""
    directory.mkdir()
    for start in range(0, len(rows), PER_TAR):
        with tarfile.open(directory / f"{TAR.format(start // PER_TAR)}.tar", "w") as tar:
            for row in rows[start : start + PER_TAR]:
                name = Path(row["key"]).name
                about = json.dumps({"category": row["category"]}).encode()
                picture = (images / row["image"]).read_bytes()
                for kind, data in (("png", picture), ("txt", row["caption"].encode()), ("json", about)):
                    member = tarfile.TarInfo(f"{name}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def records(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    dataset = Dataset(root)
    for name in dataset.manifest.counts:
        split = dataset.split(name)
        yield from ((name, split[number]) for number in range(len(split)))


def contents(root: Path) -> dict[bytes, tuple[str, dict[str, Any]]]:
    """Split and record by key."""
    return {record["key"]: (split, record) for split, record in records(root)}


def main(line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("--out", type=Path, required=True, help="a directory to make")
    arguments = parser.parse_args(line)
    images, out = arguments.package / IMAGES, arguments.out
    rows = emojis(arguments.package)
    out.mkdir(parents=True)
    write_table(rows, out / "captions.csv")
    write_tars(rows, images, out / "tars")
    inputs = {
        "folder": [str(images), f"--table={out / 'captions.csv'}", "--key_column=key"],
        "webdataset": [str(out / "tars" / "*.tar"), "--attributes=category"],
    }
    for kind, given in inputs.items():
        started = time.perf_counter()
        if cli.main(["data", "import", kind, *given, *COMMON, f"--out={out / kind}"]):
            return 1
        manifest = load_manifest(out / kind)
        took = time.perf_counter() - started
        print(f"{kind}: {dict(manifest.counts)}, left out {dict(manifest.rejected)}, {took:.1f} s")
    left, right = (contents(out / kind) for kind in inputs)
    differing = [key for key in left.keys() | right.keys() if left.get(key) != right.get(key)]
    print(f"{len(left)} records and {len(right)} of {len(rows)} emojis; {len(differing)} differ")
    return 1 if differing or not left else 0


if __name__ == "__main__":
    sys.exit(main())
