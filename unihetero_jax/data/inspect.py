"""Shows what a stored Smart Watch dataset holds: counts, texts, lengths, and a grid of its pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

from unihetero_jax.data.manifest import TOKENIZER_FILE, load_manifest
from unihetero_jax.data.smart_watch import Attributes
from unihetero_jax.errors import UsageError
from unihetero_jax.tokenizer import Tokenizer

# Reading this many records takes under a second and gives the lengths to a percent or so.
_SAMPLED_RECORDS = 500
_SHOWN_RECORDS = 2
_COLUMNS, _ROWS = 6, 4
# The smallest side at which the percentage can be read; smaller pictures are enlarged by a whole factor.
_TILE = 192
_MARGIN, _LEGEND = 20, 48
_BACKGROUND, _INK, _FAINT, _LINE = "#eef1f5", "#1e293b", "#64748b", "#d5dbe3"


def inspect(directory: str | os.PathLike[str], grid: str | os.PathLike[str] | None = None) -> None:
    """Prints a summary of a dataset and, when asked, writes a picture of its first training images.

    Args:
        directory: A directory that `unihetero_jax.data.smart_watch.builder.build` made.
        grid: The PNG file to write.

    Raises:
        UsageError: The directory holds no complete dataset, or the picture cannot be written.
    """
    manifest = load_manifest(directory)
    builder = tfds.builder_from_directory(os.fspath(directory))
    tokenizer = Tokenizer.load(Path(directory) / TOKENIZER_FILE)
    size = sum(entry.bytes for entry in manifest.files.values())
    print(f"{manifest.name} in {directory}: {len(manifest.files)} files, {size / 1e6:,.1f} MB")
    print("built with " + ", ".join(f"{name}={value}" for name, value in manifest.arguments.items()))
    height, width, channels = builder.info.features["image"].shape
    print(f"images {height} x {width} x {channels}, PNG; tokenizer of {tokenizer.vocabulary_size} pieces")
    print("features: " + ", ".join(f"{name} ({type(part).__name__})" for name, part in builder.info.features.items()))

    print(f"\n{'split':<18}{'records':>10}   tokens of text in a record: least, mean, most")
    shown = []
    for split, count in manifest.counts.items():
        source = _open(builder, split)
        records = [source[i] for i in range(min(count, _SAMPLED_RECORDS))]
        lengths = [sum(len(tokenizer.encode(value)) for _, value in _turns(made)) for made in records]
        print(f"{split:<18}{count:>10,}   {min(lengths)}, {sum(lengths) / len(lengths):.1f}, {max(lengths)}")
        if split.startswith("train_"):
            shown += records[:_SHOWN_RECORDS]
    for made in shown:
        print(f"\n{made['task'].decode()}, image {made['index']}: {_in_words(made)}")
        for speaker, value in _turns(made):
            print(f"  {speaker:>5}: " + value.replace("\n", " ⏎ "))
    if grid is not None:
        source = _open(builder, "train_vqa")
        pictures = [source[i] for i in range(min(len(source), _COLUMNS * _ROWS))]
        try:
            _draw_grid(pictures).save(grid, "png")
        except OSError as error:
            raise UsageError(f"cannot write the picture {os.fspath(grid)}: {error.strerror or error}") from error
        print(f"\nwrote {len(pictures)} pictures to {grid}")


def _open(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    """A split as a sequence of records, their images still encoded."""
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _turns(made: dict[str, Any]) -> list[tuple[str, str]]:
    """Speaker and words of each turn."""
    turns = made["conversations"]
    return [(speaker.decode(), value.decode()) for speaker, value in zip(turns["from"], turns["value"], strict=True)]


def _in_words(made: dict[str, Any]) -> str:
    """What an image shows."""
    shown = Attributes.from_json(made["attributes"])
    return (
        f"{shown.time}, {shown.weather} {shown.weather_position}, "
        f"battery {shown.battery}% {shown.battery_position}, disc RGB {shown.color}"
    )


def _draw_grid(records: list[dict[str, Any]]) -> Image.Image:
    """The pictures on cards in rows, each with its time, weather and battery beneath."""
    images = [Image.open(io.BytesIO(made["image"])) for made in records]
    factor = -(-_TILE // images[0].width)
    side = images[0].width * factor
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    step_x, step_y = side + _MARGIN, side + _LEGEND + _MARGIN
    sheet = Image.new("RGB", (columns * step_x + _MARGIN, rows * step_y + _MARGIN), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(13)
    for number, (image, made) in enumerate(zip(images, records, strict=True)):
        x, y = _MARGIN + number % columns * step_x, _MARGIN + number // columns * step_y
        card = (x - 1, y - 1, x + side, y + side + _LEGEND)
        pen.rectangle(card, fill="white", outline=_LINE)
        sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.line((x, y + side, x + side - 1, y + side), fill=_LINE)
        shown = Attributes.from_json(made["attributes"])
        pen.text((x + side / 2, y + side + 15), shown.time, fill=_INK, font=large, anchor="mm")
        legend = f"{shown.weather} · {shown.battery}%"
        pen.text((x + side / 2, y + side + 35), legend, fill=_FAINT, font=small, anchor="mm")
    return sheet
