"""Drawings of packed rows: every slot in order, with its segment, its text or image, and its weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from unihetero_jax.data.inspect.measure import visible
from unihetero_jax.data.inspect.pictures import BACKGROUND, FAINT, INK, LINE, font
from unihetero_jax.data.packing.packed_batch import PackedBatch
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.tokenizer.sentencepiece import Tokenizer

_WIDTH, _MARGIN, _GUTTER = 1280, 20, 40
_CHIP, _THUMB, _GAP = 21, 56, 4
_MAP, _MAP_WEIGHTS = 12, 6
# The rest of a row of thousands of slots is only counted, so that the drawing stays readable.
_MOST_LINES = 36
# Colors of a segment: background of text and of visual slots, and its number.
_SEGMENTS = (
    ("#dbeafe", "#93c5fd", "#1d4ed8"),
    ("#dcfce7", "#86efac", "#15803d"),
    ("#fef3c7", "#fcd34d", "#a16207"),
    ("#fce7f3", "#f9a8d4", "#be185d"),
    ("#ede9fe", "#c4b5fd", "#6d28d9"),
    ("#cffafe", "#67e8f9", "#0e7490"),
)
_TEXT_LEARNED, _VISUAL_LEARNED = "#ea580c", "#7c3aed"
_TEXT_FONT, _SMALL_FONT = 12, 10
# Bytes of a character in UTF-8.
_MOST_BYTES = 4


@dataclass(frozen=True)
class _Item:
    """A text slot, or all visual slots of an image, drawn as one; ``weights`` are those of its slots."""

    segment: int
    label: str
    weights: np.ndarray
    marker: bool = False
    picture: np.ndarray | None = None

    @property
    def slots(self) -> int:
        return len(self.weights)


def draw_rows(batch: PackedBatch, names: Sequence[str], tokenizer: Tokenizer, title: str) -> Image.Image:
    """Draw the first rows of a packed batch, one below the other, 1,280 pixels wide.

    Args:
        batch: The arrays.
        names: Labels of the rows to draw.
        tokenizer: Tokenizer of the texts.
        title: Title of the drawing.
    """
    panels = [_draw_row(batch, number, name, tokenizer) for number, name in enumerate(names)]
    heading = _heading(title)
    sheet = Image.new("RGB", (_WIDTH, sum(part.height for part in (heading, *panels)) + _MARGIN), BACKGROUND)
    top = 0
    for part in (heading, *panels):
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _heading(title: str) -> Image.Image:
    sheet = Image.new("RGB", (_WIDTH, 66), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 12), title, fill=INK, font=font(16, bold=True))
    x = float(_MARGIN)
    small = font(_TEXT_FONT)
    for color, text in (
        (_TEXT_LEARNED, "text target"),
        (_VISUAL_LEARNED, "visual target"),
        (LINE, "input only"),
    ):
        pen.rectangle((x, 53, x + 26, 56), fill=color)
        x += 32
        pen.text((x, 44), text, fill=FAINT, font=small)
        x += small.getlength(text) + 22
    note = "one color per sample (attention stays within it) · the strip: the whole row, to scale · dots are spaces"
    pen.text((x, 44), note, fill=FAINT, font=small)
    return sheet


def _draw_row(batch: PackedBatch, number: int, name: str, tokenizer: Tokenizer) -> Image.Image:
    lines = _lines(list(_items(batch, number, tokenizer)))
    shown = lines[:_MOST_LINES]
    hidden = sum(item.slots for line in lines[_MOST_LINES:] for item in line)
    heights = [_THUMB if any(item.picture is not None for item in line) else _CHIP for line in shown]
    top = 34 + _MAP + _MAP_WEIGHTS + 10
    height = top + sum(heights) + 2 * _GAP * len(shown) + (20 if hidden else 0) + 12
    sheet = Image.new("RGB", (_WIDTH, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((_MARGIN - 8, 4, _WIDTH - _MARGIN + 8, height - 5), fill="white", outline=LINE)
    bold, small = font(13, bold=True), font(_TEXT_FONT)
    pen.text((_MARGIN, 11), name, fill=INK, font=bold)
    pen.text((_MARGIN + bold.getlength(name) + 20, 12), _describe(batch, number), fill=FAINT, font=small)
    _draw_map(pen, batch, number, 34)
    last = 0
    for line, tall in zip(shown, heights, strict=True):
        segment = line[0].segment
        _, _, strong = _SEGMENTS[(segment - 1) % len(_SEGMENTS)]
        pen.rectangle((_MARGIN, top - _GAP + 2, _MARGIN + 3, top + tall + _GAP - 2), fill=strong)
        if segment != last:
            pen.text((_MARGIN + 20, top + tall / 2), str(segment), fill=strong, font=bold, anchor="mm")
        x = _MARGIN + _GUTTER
        for item in line:
            _draw_item(sheet, pen, item, x, top + (tall - _tall(item)) // 2)
            x += _wide(item) + _GAP
        last = segment
        top += tall + 2 * _GAP
    if hidden:
        pen.text((_MARGIN + _GUTTER, top), f"… and {hidden:,} more slots", fill=FAINT, font=small)
    return sheet


def _describe(batch: PackedBatch, number: int) -> str:
    segment, image = batch["segment"][number], batch["image"][number]
    used, slots = int((segment > 0).sum()), len(segment)
    text, visual = ((batch[name][number] > 0).sum() for name in ("text_weight", "visual_weight"))
    seen = int((image >= 0).sum())
    return (
        f"{used:,} of {slots:,} slots used ({used / slots:.1%}) · {segment.max()} samples · "
        f"{(batch['role'][number] != Role.ABSENT).sum()} of {batch['role'].shape[1]} images · "
        f"text: {text:,} of {used - seen:,} slots learned · visual: {visual:,} of {seen:,}"
    )


def _draw_map(pen: ImageDraw.ImageDraw, batch: PackedBatch, number: int, top: int) -> None:
    """Draw the row to scale: segments above, weights below; free slots are white."""
    segment, image = batch["segment"][number], batch["image"][number]
    text, visual = batch["text_weight"][number], batch["visual_weight"][number]
    width = _WIDTH - 2 * _MARGIN
    for x in range(width):
        slot = x * len(segment) // width
        place = _MARGIN + x
        if segment[slot]:
            plain, pictured, _ = _SEGMENTS[(segment[slot] - 1) % len(_SEGMENTS)]
            pen.line((place, top, place, top + _MAP), fill=pictured if image[slot] >= 0 else plain)
        color = _TEXT_LEARNED if text[slot] > 0 else _VISUAL_LEARNED if visual[slot] > 0 else None
        if color:
            pen.line((place, top + _MAP + 1, place, top + _MAP + _MAP_WEIGHTS), fill=color)
    pen.rectangle((_MARGIN - 1, top - 1, _MARGIN + width, top + _MAP + _MAP_WEIGHTS + 1), outline=LINE)


def _items(batch: PackedBatch, number: int, tokenizer: Tokenizer) -> Iterator[_Item]:
    """Yield the slots of a row in order, those of an image together."""
    segment, image, tokens = (batch[name][number] for name in ("segment", "image", "tokens"))
    markers = {
        tokenizer.begin_id: "begin",
        tokenizer.end_id: "end",
        tokenizer.user_id: "user",
        tokenizer.assistant_id: "assistant",
        tokenizer.image_start_id: "image",
        tokenizer.image_end_id: "/image",
    }
    slot, used = 0, int((segment > 0).sum())
    while slot < used:
        here = int(segment[slot])
        if (picture := int(image[slot])) >= 0:
            end = _run_end(image, slot)
            weights = batch["visual_weight"][number, slot:end]
            role = Role(int(batch["role"][number, picture])).name.lower()
            label = f"{role}\n{end - slot} slots\n{_weight(weights)}"
            yield _Item(here, label, weights, picture=batch["images"][number, picture])
        elif marker := markers.get(int(tokens[slot])):
            end = slot + 1
            yield _Item(here, f"‹{marker}›", batch["text_weight"][number, slot:end], marker=True)
        else:
            end = slot + 1
            while end < used and segment[end] == here and image[end] < 0 and int(tokens[end]) not in markers:
                end += 1
            for place, label in enumerate(pieces(tokenizer, tokens[slot:end].tolist()), slot):
                yield _Item(here, label, batch["text_weight"][number, place : place + 1])
        slot = end


def _run_end(values: np.ndarray, start: int) -> int:
    """Return the end of the run of equal values that begins at ``start``."""
    others = np.flatnonzero(values[start:] != values[start])
    return start + int(others[0]) if len(others) else len(values)


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Return the text that each token adds; of a character spelled in several tokens, the others are ``…``.

    Each is decoded after the token before, because some tokenizers drop the space that begins a text.
    """
    labels: list[str] = []
    start = 0
    for end in range(1, len(tokens) + 1):
        before = tokenizer.decode(tokens[start - 1 : start]) if start else ""
        whole = tokenizer.decode(tokens[max(0, start - 1) : end])
        piece = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens[start:end])
        if "\ufffd" in piece and end - start < _MOST_BYTES and end < len(tokens):
            labels.append("…")
            continue
        labels.append(visible(piece).replace(" ", "·") or "∅")
        start = end
    return labels


def _weight(weights: np.ndarray) -> str:
    least, most = weights.min(), weights.max()
    return f"weight {least:g}" if least == most else f"weight {least:g}–{most:g}"


def _lines(items: Sequence[_Item]) -> list[list[_Item]]:
    """Break the items into lines; every sample begins a line."""
    lines: list[list[_Item]] = []
    free = 0.0
    for item in items:
        wide = _wide(item) + _GAP
        if not lines or wide > free or lines[-1][-1].segment != item.segment:
            lines.append([])
            free = _WIDTH - 2 * _MARGIN - _GUTTER
        lines[-1].append(item)
        free -= wide
    return lines


def _wide(item: _Item) -> int:
    if item.picture is None:
        return min(int(font(_TEXT_FONT).getlength(item.label)) + 7, _WIDTH - 2 * _MARGIN - _GUTTER)
    small = font(_SMALL_FONT)
    return _THUMB + 12 + int(max(small.getlength(line) for line in item.label.splitlines()))


def _tall(item: _Item) -> int:
    return _CHIP if item.picture is None else _THUMB


def _draw_item(sheet: Image.Image, pen: ImageDraw.ImageDraw, item: _Item, x: int, y: int) -> None:
    plain, pictured, strong = _SEGMENTS[(item.segment - 1) % len(_SEGMENTS)]
    right, bottom = x + _wide(item) - 1, y + _tall(item) - 1
    learned = bool((item.weights > 0).any())
    if item.picture is None:
        pen.rectangle((x, y, right, bottom), fill=plain)
        color = strong if item.marker else INK if learned else FAINT
        pen.text((x + 3, y + 9), item.label, fill=color, font=font(_TEXT_FONT), anchor="lm")
        if learned:
            pen.rectangle((x, bottom - 2, right, bottom), fill=_TEXT_LEARNED)
        return
    pen.rectangle((x, y, right, bottom), fill=pictured)
    side = _THUMB - 6
    smooth = item.picture.shape[0] > side
    thumb = Image.fromarray(item.picture).resize(
        (side, side), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    )
    sheet.paste(thumb, (x + 3, y + 2))
    for number, line in enumerate(item.label.splitlines()):
        where = (x + _THUMB + 4, y + 6 + 14 * number)
        pen.text(where, line, fill=INK, font=font(_SMALL_FONT, bold=number == 0))
    if learned:
        pen.rectangle((x, bottom - 2, right, bottom), fill=_VISUAL_LEARNED)
