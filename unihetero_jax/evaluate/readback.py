"""Attributes of watches, classified by a network trained on real ones (``towers train attribute_classifier``).

n pictures, H and W pixels, F width of a feature.

A score of drawn pictures is worth what the reader is worth, so its score on real pictures stands beside it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter

from unihetero_jax.data.smart_watch import POSITIONS, QUESTION_KINDS, WEATHERS, Attributes, color_name
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.vqa import battery_score, time_score
from unihetero_jax.parallel.definition import Params, define_module
from unihetero_jax.towers.attribute_classifier.config import ReaderConfig
from unihetero_jax.towers.attribute_classifier.network import Reading, WatchReader
from unihetero_jax.towers.autoencoder.images import to_signed
from unihetero_jax.towers.trained import load_tower

KINDS = (*QUESTION_KINDS, "color")
"""What a request may state, and a picture show."""

Pictures = UInt8[np.ndarray, "n H W 3"]

# Scores by the kind of attribute that they are about.
_SCORES = {
    "weather": ("weather",),
    "time": ("time", "hour", "minute", "second"),
    "battery": ("battery",),
    "battery_pos": ("battery_position",),
    "weather_pos": ("weather_position",),
    "color": ("color_error", "color_name"),
}


class Reader:
    """Reads pictures of any size, ``batch_size`` at a time.

    Args:
      config: of the reader.
      params: its parameters.
      batch_size: pictures at a time.
    """

    def __init__(self, config: ReaderConfig, params: Params, batch_size: int = 100):
        self._params, self._batch_size = params, batch_size
        self._program = _program(config)

    @classmethod
    def load(cls, workdir: Path, batch_size: int = 100) -> Reader:
        """The reader that ``unihetero towers train attribute_classifier`` left in a workdir.

        Raises:
          UsageError: there is no trained tower, or one of another kind.
        """
        config, params = load_tower(workdir)
        if not isinstance(config, ReaderConfig):
            raise UsageError(
                f"{workdir}: holds another tower; expected the --workdir of `unihetero towers train "
                "attribute_classifier`"
            )
        return cls(config, params, batch_size)

    def read(self, images: Pictures) -> list[Attributes]:
        """What each picture shows; noon is hour 0."""
        found: list[Attributes] = []
        for reading in self._readings(images):
            found += _attributes(reading)
        return found[: len(images)]

    def features(self, images: Pictures) -> Float[np.ndarray, "n F"]:
        """What the reader makes of each picture before it decides: for distances between sets of pictures."""
        return np.concatenate([reading.features for reading in self._readings(images)])[: len(images)]

    def _readings(self, images: Pictures) -> list[Reading]:
        """Of the pictures in order; some of padding may follow."""
        parts = of_one_size(images, self._batch_size)
        return [jax.device_get(self._program(self._params, part)) for part in parts]


def of_one_size(images: Pictures, size: int) -> Iterator[Pictures]:
    """Pictures in parts of at most ``size``, all of one shape, as each would be a program to compile.

    The last is filled up with its last picture. Raises ``ValueError`` where there are none.
    """
    if not len(images):
        raise ValueError("expected at least one picture")
    size = min(size, len(images))
    for start in range(0, len(images), size):
        part = images[start : start + size]
        room = size - len(part)
        yield np.concatenate([part, np.repeat(part[-1:], room, axis=0)]) if room else part


@functools.lru_cache(maxsize=4)
def _program(config: ReaderConfig) -> Callable[[Params, np.ndarray], Reading]:
    definition = define_module(lambda rngs: WatchReader(config, rngs=rngs))
    precision = "highest" if config.dtype == "float32" else None

    @jax.jit
    def read(params: Params, images: jax.Array) -> Reading:
        with jax.default_matmul_precision(precision):
            reading: Reading = definition.bind(params)(to_signed(images[:, None], config.image_size))
        return reading._replace(
            content=jax.nn.softmax(reading.content, axis=-1), charge=jax.nn.softmax(reading.charge, axis=-1)
        )

    return read


def _attributes(reading: Reading) -> list[Attributes]:
    """The likeliest of everything; of the charge the median, which has the least absolute error."""
    count, _, minutes = reading.time.shape
    hour, minute = np.divmod(reading.time.reshape(count, -1).argmax(axis=1), minutes)
    second = reading.second.argmax(axis=1)
    of_weather = reading.content[:, :, 1:-1]
    weather_at = of_weather.sum(axis=-1).argmax(axis=1)
    battery_at = reading.content[:, :, -1].argmax(axis=1)
    rows = np.arange(count)
    weather = of_weather[rows, weather_at].argmax(axis=-1)
    battery = (np.cumsum(reading.charge[rows, battery_at], axis=-1) >= 0.5).argmax(axis=-1)
    color = np.clip(np.round(reading.color * 255), 0, 255).astype(int)
    return [
        Attributes(
            int(hour[row]),
            int(minute[row]),
            int(second[row]),
            WEATHERS[weather[row]],
            int(battery[row]),
            POSITIONS[weather_at[row]],
            POSITIONS[battery_at[row]],
            (int(color[row, 0]), int(color[row, 1]), int(color[row, 2])),
        )
        for row in rows
    ]


def scores(
    found: Sequence[Attributes], truths: Sequence[Attributes], stated: Sequence[AbstractSet[str]] | None = None
) -> dict[str, float]:
    """How well what was read is what should be there: means over n pictures.

    Args:
      found: what was read.
      truths: what should be there.
      stated: kinds (of ``KINDS``) that count for each picture, as ``stated_kinds`` gives them; all, by default.

    Returns:
      ``weather``, ``weather_position``, ``battery_position``, ``hour`` (of twelve), ``minute``, ``second``: shares that
      are right. ``time`` and ``battery``: the scores of arXiv 2505.23043, see ``evaluate.vqa``. ``color_error``: mean
      absolute difference of RGB, of 255; ``color_name``: the share whose name is right. ``total``: the mean of weather,
      time, battery and the two positions. What no picture was asked for is left out, and so is then ``total``.
    """
    results: dict[str, float] = {}
    for kind, names in _SCORES.items():
        counted = [
            _score(kind, read, truth)
            for number, (read, truth) in enumerate(zip(found, truths, strict=True))
            if stated is None or kind in stated[number]
        ]
        if counted:
            results |= dict(zip(names, np.mean(counted, axis=0).tolist(), strict=True))
    told = [results[_SCORES[kind][0]] for kind in QUESTION_KINDS if _SCORES[kind][0] in results]
    if len(told) == len(QUESTION_KINDS):
        results["total"] = float(np.mean(told))
    return results


def _score(kind: str, read: Attributes, truth: Attributes) -> tuple[float, ...]:
    """The numbers that ``_SCORES`` names for a kind."""
    if kind == "time":
        hands = [(watch.hour % 12, watch.minute, watch.second) for watch in (truth, read)]
        right = (float(wanted == shown) for wanted, shown in zip(*hands, strict=True))
        return (time_score(hands[0], hands[1]), *right)
    if kind == "battery":
        return (battery_score(truth.battery, read.battery),)
    if kind == "color":
        apart = np.abs(np.subtract(read.color, truth.color)).mean()
        return float(apart), float(color_name(read.color) == color_name(truth.color))
    return (float(read.answer(kind) == truth.answer(kind)),)


def stated_kinds(text: str, truth: Attributes) -> set[str]:
    """The kinds of attributes that a text about a watch states rightly; a colour by its name."""
    answers = {**{kind: truth.answer(kind) for kind in QUESTION_KINDS}, "color": color_name(truth.color)}
    return {kind for kind, answer in answers.items() if re.search(rf"(?<![\w-]){re.escape(answer)}(?![\w-])", text)}


def accuracy(reader: Reader, images: Pictures, truths: Sequence[Attributes], blur: float = 0.0) -> dict[str, float]:
    """A reader's scores on real pictures, as they are or blurred.

    Args:
      reader: the reader.
      images: n pictures.
      truths: what they show.
      blur: standard deviation of a Gaussian, in pixels of the pictures.
    """
    return scores(reader.read(blurred(images, blur) if blur else images), truths)


def blurred(images: Pictures, width: float) -> Pictures:
    """Pictures under a Gaussian blur of ``width`` pixels, the border mirrored."""
    soft = gaussian_filter(images.astype(np.float32), (0, width, width, 0))
    return np.clip(np.round(soft), 0, 255).astype(np.uint8)
