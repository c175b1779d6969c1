"""What a stored dataset holds, read without the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from unihetero_jax.data.records.example import parse


def stored(directory: Path, split: str) -> list[dict[str, Any]]:
    """The records of a split, as `record.parse` gives them, in order."""
    records = []
    for shard in sorted(directory.glob(f"*-{split}.array_record-*")):
        reader = array_record_module.ArrayRecordReader(str(shard))
        records += map(parse, reader.read_all())
        reader.close()
    return records
