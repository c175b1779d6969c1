"""Settings of an import, whatever is imported, with the flags that set them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from unihetero_jax.data.ingest.importer import MAX_RECORD_MB, option
from unihetero_jax.data.records.invalid import MAX_PIXELS
from unihetero_jax.errors import UsageError

# Pillow refuses images of more than twice its own limit, whatever it is told.
_MOST_PIXELS = 170_000_000
_LEAST_VOCABULARY, _MOST_VOCABULARY = 512, 1 << 20


def _number(default: float, metavar: str, help: str, least: float, most: float) -> Any:
    """Declare a number, with its range and its default in the help."""
    text = f"{help} (default: {default})"
    return option(default, metavar=metavar, help=text, parse=type(default), limits=(least, most))


def _check_ranges(section: Any) -> None:
    for field in dataclasses.fields(section):
        about, value = field.metadata.get("option"), getattr(section, field.name)
        if about and about.limits and not about.limits[0] <= value <= about.limits[1]:
            least, most = about.limits
            raise UsageError(f"{field.name}={value} is impossible: expected {least:,} to {most:,}")


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps applied to every record; a limit of 0 does not apply.

    Attributes:
        resize: Shortest side, in pixels, to which larger images are reduced; they are stored as JPEG.
        quality: Quality of such a JPEG, 1 to 95.
        min_side: Least shortest side of an image before that, in pixels.
        max_side: Most longest side of an image before that, in pixels.
        max_aspect: Most longest side over shortest side.
        max_pixels: Most pixels of an image: a larger one is never decoded.
        min_text: Least characters of all answers of a record, ``<image>`` excluded; for records with such text.
        max_text: Most of these characters.
        max_record_mb: Most megabytes of a record's images and texts: a larger one is left out unread.
        drop_duplicates: Whether to leave out a record with the images and texts of an earlier one.

    Raises:
        UsageError: A value is impossible.
    """

    resize: int = _number(0, "PIXELS", "shortest side to which larger images are reduced, as JPEG; 0: none", 0, 16_384)
    quality: int = _number(90, "Q", "quality of such a JPEG, 1 to 95", 1, 95)
    min_side: int = _number(0, "PIXELS", "least shortest side of an image", 0, 1 << 20)
    max_side: int = _number(0, "PIXELS", "most longest side; 0: any", 0, 1 << 20)
    max_aspect: float = _number(0.0, "RATIO", "most longest over shortest side; 0: any", 0, 1 << 20)
    max_pixels: int = _number(
        MAX_PIXELS, "N", "most pixels of an image; larger ones are never decoded", 1, _MOST_PIXELS
    )
    min_text: int = _number(0, "N", "least characters of a caption, or of all answers of a record", 0, 1 << 30)
    max_text: int = _number(0, "N", "most of these characters; 0: any", 0, 1 << 30)
    max_record_mb: int = _number(
        MAX_RECORD_MB, "MB", "most megabytes of a record; larger ones are never read as a whole", 1, 1024
    )
    drop_duplicates: bool = option(False, metavar="", help="leave out records with the images and text of earlier ones")

    def __post_init__(self) -> None:
        _check_ranges(self)
        if 0 < self.max_aspect < 1:
            raise UsageError(f"max_aspect={self.max_aspect} is impossible: longest over shortest side is 1 or more")
        for name, least, most in (("side", self.min_side, self.max_side), ("text", self.min_text, self.max_text)):
            if 0 < most < least:
                raise UsageError(f"min_{name}={least} is above max_{name}={most}: no record could be both")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of an import.

    Attributes:
        name: Name of the dataset, part of the names of its files; the importer's by default.
        steps: Steps applied to every record.
        test_share: Share of the records that go to the test set, by the hash of their key, unless the input says which
            do.
        shard_mb: Approximate size of a shard, in millions of bytes.
        vocabulary_size: Most pieces of a tokenizer that is trained on a sample of the texts; 0 trains none.
        tokenizer: A ``tokenizer.model`` or ``tokenizer.json`` to copy instead.

    Raises:
        UsageError: A value is impossible.
    """

    name: str = option("", metavar="NAME", help="name in the names of the files (default: that of the importer)")
    steps: Steps = dataclasses.field(default_factory=Steps)
    test_share: float = _number(0.0, "SHARE", "share of records for the test set, by the hash of their key", 0, 1)
    shard_mb: float = _number(200.0, "MB", "approximate size of a shard", 0.001, 100_000)
    vocabulary_size: int = _number(
        8000, "N", "most pieces of the tokenizer that is trained on the texts; 0: none", 0, _MOST_VOCABULARY
    )
    tokenizer: str = option(
        "", metavar="FILE", help="a tokenizer.model or tokenizer.json to copy instead", exists="file"
    )

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name):
            raise UsageError(f"name={self.name!r}: expected small letters, digits and _")
        _check_ranges(self)
        if 0 < self.vocabulary_size < _LEAST_VOCABULARY:
            raise UsageError(
                f"vocabulary_size={self.vocabulary_size} is impossible: expected {_LEAST_VOCABULARY} to "
                f"{_MOST_VOCABULARY:,}, or 0 for no tokenizer"
            )
