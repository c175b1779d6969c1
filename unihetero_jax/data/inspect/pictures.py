"""Sheets of a dataset's images, each on a card with its texts."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from unihetero_jax.data.inspect.measure import turn_texts, visible
from unihetero_jax.data.records.images import decode
from unihetero_jax.data.records.record import record_images
from unihetero_jax.data.smart_watch import Attributes
from unihetero_jax.errors import UsageError

CARDS = 24
_COLUMNS = 6
# The smallest side at which Smart Watch's percentage is legible; smaller images are enlarged by a whole factor.
_TILE = 192
_MARGIN, _LEGEND = 20, 48
_LINES, _LINE_HEIGHT = 5, 17
BACKGROUND, INK, FAINT, LINE = "#eef1f5", "#1e293b", "#64748b", "#d5dbe3"

# Writes the text under an image: pen, left and upper edge, width.
Legend = Callable[[ImageDraw.ImageDraw, int, int, int], None]


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font, which has many alphabets; Pillow's own has Latin letters only."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        picture.save(path, "png")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def draw_watches(records: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw Smart Watch's images, each with its time, weather and battery beneath."""
    pictures = [Image.open(io.BytesIO(record["image"])).convert("RGB") for record in records]
    side = pictures[0].width * -(-_TILE // pictures[0].width)
    large, small = ImageFont.load_default(18), ImageFont.load_default(13)

    def legend(record: Mapping[str, Any]) -> Legend:
        shown = Attributes.from_json(record["attributes"])

        def write(pen: ImageDraw.ImageDraw, x: int, y: int, width: int) -> None:
            pen.text((x + width / 2, y + 15), shown.time, fill=INK, font=large, anchor="mm")
            others = f"{shown.weather} · {shown.battery}%"
            pen.text((x + width / 2, y + 35), others, fill=FAINT, font=small, anchor="mm")

        return write

    cards = [
        (picture.resize((side, side), Image.Resampling.NEAREST), legend(record))
        for picture, record in zip(pictures, records, strict=True)
    ]
    return _sheet(cards, side, _LEGEND)


def draw_cards(records: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw the first image of each record with its task and texts.

    Args:
        records: Valid records with at least one image.
    """
    small, bold = font(11), font(11, bold=True)

    def legend(record: Mapping[str, Any]) -> Legend:
        def write(pen: ImageDraw.ImageDraw, x: int, y: int, width: int) -> None:
            more = len(record_images(record)) - 1
            heading = _plain(record.get("task", b"")) + (f" · first of {more + 1} images" if more else "")
            pen.text((x + 6, y + 6), heading, fill=FAINT, font=bold)
            text = " → ".join(said for _, said in turn_texts(record) if said)
            for number, line in enumerate(_wrapped(visible(text), small, width - 12, _LINES)):
                pen.text((x + 6, y + 6 + (number + 1) * _LINE_HEIGHT), line, fill=INK, font=small)

        return write

    cards = [(first_image(record), legend(record)) for record in records]
    return _sheet(cards, _TILE, (_LINES + 1) * _LINE_HEIGHT + 12)


def first_image(record: Mapping[str, Any]) -> Image.Image:
    """Return the whole first image of a record, padded to a square.

    Raises:
        InvalidRecord: The image cannot be decoded.
        IndexError: There is none.
    """
    return Image.fromarray(decode(record_images(record)[0], _TILE, fit="pad"))


def _plain(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _wrapped(text: str, by: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Wrap a text to lines of at most ``width`` pixels, at spaces where possible, and cut it after the last line."""
    lines: list[str] = []
    while text and len(lines) < most:
        fits = next((n for n in range(1, len(text) + 1) if by.getlength(text[:n]) > width), len(text) + 1) - 1
        cut = max(fits, 1)
        if cut < len(text) and (space := text.rfind(" ", 0, cut + 1)) > 0:
            cut = space
        lines.append(text[:cut])
        text = text[cut:].lstrip()
    if text:
        lines[-1] = lines[-1][:-1] + "…"
    return lines


def _sheet(cards: Sequence[tuple[Image.Image, Legend]], side: int, legend: int) -> Image.Image:
    """Draw cards in rows: images of ``side`` pixels, with ``legend`` pixels beneath."""
    columns = min(_COLUMNS, len(cards))
    rows = -(-len(cards) // columns)
    step_x, step_y = side + _MARGIN, side + legend + _MARGIN
    sheet = Image.new("RGB", (columns * step_x + _MARGIN, rows * step_y + _MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, (picture, write) in enumerate(cards):
        x, y = _MARGIN + number % columns * step_x, _MARGIN + number // columns * step_y
        pen.rectangle((x - 1, y - 1, x + side, y + side + legend), fill="white", outline=LINE)
        sheet.paste(picture, (x, y))
        pen.line((x, y + side, x + side - 1, y + side), fill=LINE)
        write(pen, x, y + side, side)
    return sheet
