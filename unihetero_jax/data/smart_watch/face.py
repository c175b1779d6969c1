"""The face of a Smart Watch UI image: its random attributes, and its drawing.

The geometry and the distributions are those of the generator released with arXiv 2505.23043, whose numbers are pixels
of a 224-px canvas; other sizes scale it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unihetero_jax.data.records.draws import Draws

WEATHERS = ("sunny", "cloudy", "raining")
POSITIONS = ("top-left", "top-right", "bottom-left", "bottom-right")
QUESTION_KINDS = ("weather", "time", "battery", "battery_pos", "weather_pos")

REFERENCE_SIZE = 224
"""The canvas, in pixels, that every length below is given for."""

_DISC_RADIUS = 0.4 * REFERENCE_SIZE
_HANDS = ((0.5, 6.0), (0.7, 4.0), (0.9, 2.0))  # (length as a share of the radius, width): hour, minute, second
_ICON_SIZE = 30.0
_BATTERY_WIDTH, _BATTERY_HEIGHT = 25.0, 10.0
_BATTERY_TEXT_OFFSET = 30.0
_LEFT, _RIGHT = 10.0, REFERENCE_SIZE - 50.0
_TOP, _BOTTOM = 10.0, REFERENCE_SIZE - 30.0

# Stream of random numbers for the attributes; the texts of each task have streams of their own.
_ATTRIBUTE_STREAM = 0

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_LEVEL = 1


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Attributes of a watch face.

    Attributes:
        hour: 0 to 12; 0 and 12 look the same, as in the authors' data.
        minute: 0 to 59.
        second: 0 to 59.
        weather: One of `WEATHERS`.
        battery: Charge in percent, 0 to 100.
        weather_position: Corner of the weather icon, one of `POSITIONS`.
        battery_position: Corner of the battery, a different one.
        color: RGB of the disc, each 0 to 255.
    """

    hour: int
    minute: int
    second: int
    weather: str
    battery: int
    weather_position: str
    battery_position: str
    color: tuple[int, int, int]

    @property
    def time(self) -> str:
        """``HH:MM:SS``."""
        return f"{self.hour:02d}:{self.minute:02d}:{self.second:02d}"

    def answer(self, kind: str) -> str:
        """Return the bare answer to a question of one of `QUESTION_KINDS`."""
        return {
            "weather": self.weather,
            "time": self.time,
            "battery": f"{self.battery}%",
            "battery_pos": self.battery_position,
            "weather_pos": self.weather_position,
        }[kind]

    def to_json(self) -> str:
        """Return one line of JSON, the inverse of `from_json`."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Attributes:
        """Parse the attributes stored with a record."""
        fields = json.loads(text)
        return cls(**{**fields, "color": tuple(fields["color"])})


def sample_attributes(seed: int, index: int) -> Attributes:
    """Return the attributes of image ``index`` (from 0) of the dataset with this ``seed`` (from 0)."""
    draws = Draws(seed, index, _ATTRIBUTE_STREAM)
    hour, minute, second = draws.below(13), draws.below(60), draws.below(60)
    weather = draws.choose(WEATHERS)
    battery = draws.below(101)
    weather_position, battery_position = draws.shuffled(POSITIONS)[:2]
    color = (draws.below(256), draws.below(256), draws.below(256))
    return Attributes(hour, minute, second, weather, battery, weather_position, battery_position, color)


def hand_angles(attributes: Attributes) -> tuple[float, float, float]:
    """Return the directions of the hour, minute and second hand in degrees, clockwise from 3 o'clock.

    As in the authors' generator, only the hour hand moves between its marks.
    """
    return (
        (attributes.hour % 12 + attributes.minute / 60) * 30 - 90,
        attributes.minute * 6 - 90,
        attributes.second * 6 - 90,
    )


def corner(position: str) -> tuple[float, float]:
    """Return the upper left point (x, y), in pixels of the 224-px canvas, of an icon in a corner."""
    vertical, horizontal = position.split("-")
    return (_LEFT if horizontal == "left" else _RIGHT), (_TOP if vertical == "top" else _BOTTOM)


def draw(attributes: Attributes, image_size: int) -> Image.Image:
    """Draw a watch face.

    Args:
        attributes: Its attributes.
        image_size: Side of the square canvas in pixels, 16 or more.

    Returns:
        An RGB image of ``image_size`` × ``image_size`` pixels, antialiased.
    """
    factor = _oversampling(image_size)
    unit = image_size * factor / REFERENCE_SIZE
    center = image_size * factor / 2
    # White hands on a disc of one color: the coverage of each pixel by the disc is enough, so it is drawn in one
    # channel at high resolution, and colored after reducing.
    coverage = _disc(image_size).copy()
    pen = ImageDraw.Draw(coverage)
    for (length, width), degrees in zip(_HANDS, hand_angles(attributes), strict=True):
        along_x, along_y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        tip = length * _DISC_RADIUS * unit
        half = width * unit / 2
        pen.polygon(
            [
                (center + reach * along_x - side * along_y - 0.5, center + reach * along_y + side * along_x - 0.5)
                for reach, side in ((0, half), (tip, half), (tip, -half), (0, -half))
            ],
            fill=0,
        )
    image = Image.new("RGB", (image_size, image_size), "white")
    image.paste(attributes.color, None, coverage.reduce(factor))
    for patch, place in (
        _weather_patch(attributes.weather, attributes.weather_position, image_size),
        _battery_patch(attributes.battery, attributes.battery_position, image_size),
    ):
        image.paste(patch, place)
    return image


def encode_png(image: Image.Image) -> bytes:
    """Encode an RGB image as PNG.

    Pillow tries all five filters on every line. On images this flat none of them helps: unfiltered lines take a quarter
    of the time and four fifths of the bytes.
    """
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # Each line begins with the number of its filter, 0 for none.
    lines[:, 1:] = pixels.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, _PNG_LEVEL)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _oversampling(image_size: int) -> int:
    """Return the subpixels per side of a pixel: the thin second hand needs more of them on a small canvas."""
    return 8 if image_size <= 128 else 4 if image_size <= 1024 else 2


@functools.lru_cache(maxsize=4)
def _disc(image_size: int) -> Image.Image:
    """Draw the disc without hands at the resolution of `draw`; 255 inside, 0 outside."""
    side = image_size * _oversampling(image_size)
    radius = _DISC_RADIUS / REFERENCE_SIZE * side
    canvas = Image.new("L", (side, side), 0)
    ends = (side / 2 - radius, side / 2 + radius - 1)
    ImageDraw.Draw(canvas).ellipse((ends[0], ends[0], ends[1], ends[1]), fill=255)
    return canvas


class _Overlay:
    """White patch in a corner, drawn in 224-px units at high resolution, then reduced to whole pixels."""

    def __init__(self, position: str, width: float, height: float, image_size: int):
        scale = image_size / REFERENCE_SIZE
        self._factor = 2 * _oversampling(image_size)
        self._x, self._y = corner(position)
        self._box = (
            math.floor(self._x * scale),
            math.floor(self._y * scale),
            min(image_size, math.ceil((self._x + width) * scale)),
            min(image_size, math.ceil((self._y + height) * scale)),
        )
        self._unit = scale * self._factor
        size = ((self._box[2] - self._box[0]) * self._factor, (self._box[3] - self._box[1]) * self._factor)
        self.canvas = Image.new("RGB", size, "white")
        self.pen = ImageDraw.Draw(self.canvas)

    def points(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        """Return the canvas coordinates of points given in units from the corner."""
        left, top = self._box[0] * self._factor, self._box[1] * self._factor
        return [((self._x + x) * self._unit - left, (self._y + y) * self._unit - top) for x, y in points]

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: str) -> None:
        """Fill a rectangle, right and bottom edges excluded."""
        (x0, y0), (x1, y1) = self.points((left, top), (right, bottom))
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            self.pen.rectangle((round(x0), round(y0), round(x1) - 1, round(y1) - 1), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        """Fill a disc."""
        (x0, y0), (x1, y1) = self.points((x - radius, y - radius), (x + radius, y + radius))
        self.pen.ellipse((x0, y0, x1 - 1, y1 - 1), fill=fill)

    def line(self, start: tuple[float, float], end: tuple[float, float], width: float, fill: str) -> None:
        """Draw a straight stroke with round ends."""
        self.pen.line(self.points(start, end), fill=fill, width=max(1, round(width * self._unit)))
        for x, y in (start, end):
            self.disc(x, y, width / 2, fill)

    def text(self, x: float, y: float, width: float, height: float, text: str, widest: str) -> None:
        """Write black text, left-aligned and so large that ``widest`` fills the given box."""
        font = ImageFont.load_default(100)
        left, top, right, bottom = font.getbbox(widest)
        line = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)), 0)
        ImageDraw.Draw(line).text((-left, -top), text, fill=255, font=font)
        (x0, y0), (x1, y1) = self.points((x, y), (x + width, y + height))
        line = line.resize((max(1, round(x1 - x0)), max(1, round(y1 - y0))), Image.Resampling.BOX)
        self.canvas.paste("black", (round(x0), round(y0)), line)

    def finish(self) -> tuple[Image.Image, tuple[int, int]]:
        """Return the patch at its final size and the place of its upper left pixel."""
        return self.canvas.reduce(self._factor), self._box[:2]


@functools.lru_cache(maxsize=64)
def _weather_patch(weather: str, position: str, image_size: int) -> tuple[Image.Image, tuple[int, int]]:
    """Draw the 30-px weather icon."""
    icon = _Overlay(position, _ICON_SIZE, _ICON_SIZE, image_size)
    if weather == "sunny":
        for ray in range(8):
            x, y = math.cos(ray * math.pi / 4), math.sin(ray * math.pi / 4)
            icon.line((15 + 10.5 * x, 15 + 10.5 * y), (15 + 13.5 * x, 15 + 13.5 * y), 2.4, "#f59e0b")
        icon.disc(15, 15, 7.5, "#fbbf24")
    else:
        shade, lift = ("#94a3b8", 0.0) if weather == "cloudy" else ("#64748b", -4.0)
        for x, y, radius in ((8.0, 18.0, 6.0), (14.5, 13.0, 7.5), (22.0, 17.5, 6.5)):
            icon.disc(x, y + lift, radius, shade)
        icon.rectangle(8, 16 + lift, 22, 24 + lift, shade)
        if weather == "raining":
            for x in (8.5, 15.0, 21.5):
                icon.line((x + 1, 22.5), (x - 1, 27.5), 2.2, "#2563eb")
    return icon.finish()


@functools.lru_cache(maxsize=512)
def _battery_patch(charge: int, position: str, image_size: int) -> tuple[Image.Image, tuple[int, int]]:
    """Draw the battery bar with its green fill and its percentage."""
    width = REFERENCE_SIZE - _RIGHT
    overlay = _Overlay(position, width, _BATTERY_HEIGHT, image_size)
    overlay.rectangle(0, 0, _BATTERY_WIDTH, _BATTERY_HEIGHT, "black")
    overlay.rectangle(1, 1, _BATTERY_WIDTH - 1, _BATTERY_HEIGHT - 1, "white")
    overlay.rectangle(1, 1, 1 + int(23 * charge / 100), _BATTERY_HEIGHT - 1, "#22c55e")
    # The widest text must end inside the canvas: 20 px remain between its start and the right edge.
    text_width = width - _BATTERY_TEXT_OFFSET - 0.5
    overlay.text(_BATTERY_TEXT_OFFSET, 1, text_width, _BATTERY_HEIGHT - 2, f"{charge}%", widest="100%")
    return overlay.finish()
