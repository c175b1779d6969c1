"""Attributes of watches by a classifier trained on real images (``unihetero towers train attribute_classifier``).

n images, H and W pixels, F width of a feature.

A score of generated images is worth what the classifier is worth, so its score on real images stands beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter

from unihetero_jax.data.smart_watch import POSITIONS, WEATHERS, Attributes
from unihetero_jax.errors import UsageError
from unihetero_jax.evaluate.common.attributes import scores
from unihetero_jax.parallel.module_definition import Params, define_module
from unihetero_jax.towers.common.attribute_classifier.config import AttributeClassifierConfig
from unihetero_jax.towers.common.attribute_classifier.network import AttributeClassifier, Reading
from unihetero_jax.towers.common.autoencoder.images import to_signed
from unihetero_jax.towers.common.stored import load_tower

Images = UInt8[np.ndarray, "n H W 3"]


class TrainedClassifier:
    """Predicts the attributes of images of any size.

    Args:
      config: of the classifier.
      params: its parameters.
      batch_size: images at a time.
    """

    def __init__(self, config: AttributeClassifierConfig, params: Params, batch_size: int = 100):
        self._params, self._batch_size = params, batch_size
        self._program = _program(config)

    @classmethod
    def load(cls, workdir: Path, batch_size: int = 100) -> TrainedClassifier:
        """The classifier in a workdir of ``unihetero towers train attribute_classifier``.

        Raises:
          UsageError: there is no trained tower, or one of another kind.
        """
        config, params = load_tower(workdir)
        if not isinstance(config, AttributeClassifierConfig):
            raise UsageError(
                f"{workdir}: no attribute classifier: expected a workdir of `unihetero towers train "
                "attribute_classifier`"
            )
        return cls(config, params, batch_size)

    def predict(self, images: Images) -> list[Attributes]:
        """The attributes of each image; noon is hour 0."""
        return [watch for scores in self._scores(images) for watch in _attributes(scores)][: len(images)]

    def features(self, images: Images) -> Float[np.ndarray, "n F"]:
        """The features that the scores of each image are computed from, for distances between sets of images."""
        return np.concatenate([scores.features for scores in self._scores(images)])[: len(images)]

    def _scores(self, images: Images) -> list[Reading]:
        """Scores of the images in order, and of some padding after them."""
        parts = same_size_parts(images, self._batch_size)
        return [jax.device_get(self._program(self._params, part)) for part in parts]


def same_size_parts(images: Images, size: int) -> Iterator[Images]:
    """Images in parts of at most ``size``, all of one shape, because each shape is a program to compile.

    The last part is padded with its last image. Raises ``ValueError`` where there are no images.
    """
    if not len(images):
        raise ValueError("expected at least one image")
    size = min(size, len(images))
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield np.pad(part, [(0, size - len(part)), (0, 0), (0, 0), (0, 0)], mode="edge")


@functools.lru_cache(maxsize=4)
def _program(config: AttributeClassifierConfig) -> Callable[[Params, np.ndarray], Reading]:
    definition = define_module(lambda rngs: AttributeClassifier(config, rngs=rngs))
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


def accuracy(
    classifier: TrainedClassifier, images: Images, truths: Sequence[Attributes], blur: float = 0.0
) -> dict[str, float]:
    """A classifier's scores on real images, as they are or blurred.

    Args:
      classifier: the classifier.
      images: n images.
      truths: their attributes.
      blur: standard deviation of a Gaussian, in pixels.
    """
    return scores(classifier.predict(blurred(images, blur) if blur else images), truths)


def blurred(images: Images, width: float) -> Images:
    """Images under a Gaussian blur of ``width`` pixels, the border mirrored."""
    soft = gaussian_filter(images.astype(np.float32), (0, width, width, 0))
    return np.clip(np.round(soft), 0, 255).astype(np.uint8)
