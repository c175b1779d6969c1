"""Files as people have them: images, tars, tables."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from unihetero_jax.data.ingest.settings import Settings
from unihetero_jax.data.ingest.write import Pool, import_dataset
from unihetero_jax.data.records.example import parse


def picture(shade: int = 0, size: tuple[int, int] = (12, 8), kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """An encoded image; ``shade`` tells one from another."""
    width, height = size
    noise = np.random.default_rng(shade).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pairs(numbers: range, first: str = "") -> list[tuple[str, bytes]]:
    """Members of a tar of captioned images, as img2dataset makes it."""
    members = []
    for n in numbers:
        about = {"caption": f"picture {n}", "url": f"http://x/{n}", "width": 12}
        members += [
            (f"{first}{n:05d}.jpg", picture(n)),
            (f"{first}{n:05d}.txt", f"the picture {n}".encode()),
            (f"{first}{n:05d}.json", json.dumps(about).encode()),
        ]
    return members


def write_table(path: Path, rows: list[dict]) -> Path:
    """CSV, TSV, JSONL or Parquet by the name."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    else:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def imported(importer, out: Path, workers: int = 1, **settings):
    settings = {"vocabulary_size": 0, **settings}
    return import_dataset(importer, out, Settings(**settings), Pool(workers))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def stored(directory: Path, split: str) -> list[dict]:
    """The records of a split, as they lie in the shards."""
    found = []
    for path in sorted(directory.glob(f"*-{split}.array_record-*")):
        reader = array_record_module.ArrayRecordReader(str(path))
        found += [parse(data) for data in reader.read_all()]
    return found


def turns(record: dict) -> list[tuple[str, str]]:
    said = record["conversations"]
    return [(speaker.decode(), value.decode()) for speaker, value in zip(said["from"], said["value"], strict=True)]


def prepare(directory: Path, features: dict[str, Any], examples: dict[str, list[dict[str, Any]]]) -> Path:
    """Writes a dataset as TFDS does, images as the bytes they are given as."""

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "made"
        code_path = Path(__file__)

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in examples}

        def _generate_examples(self, split):
            yield from enumerate(examples[split])

    builder = Made(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)
