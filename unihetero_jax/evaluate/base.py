"""What an evaluator is given, and what it gives back.

An evaluator is a function of its config section and a ``Context``:

    @dataclass(frozen=True)
    class BrightnessConfig(EvaluatorConfig):
        '''Brightness of generated images.'''


    @EVALUATORS.register("brightness", config=BrightnessConfig)
    def evaluate(config: BrightnessConfig, context: Context) -> Result:
        requests = context.requests()
        if requests is None or not context.predictor.generates_images:
            return Result()
        images = context.predictor.generate_images(requests.requests).images
        return Result({"mean": float(images.mean())}, [f"brightness {images.mean():.1f}"], {"first.png": images[0]})

It is run where ``config.evaluators`` has an entry of its kind. The numbers are found in ``eval.json`` under the entry's
name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unihetero_jax.config import Config, EvaluateConfig, mode_weights
from unihetero_jax.evaluate.common import held_out, smart_watch
from unihetero_jax.evaluate.common.held_out import Requests

if TYPE_CHECKING:
    from unihetero_jax.generate.predict import Predictor

EXAMPLE = "example.png"
"""A held-out image in the workdir, for the first question to ``unihetero generate``."""


@dataclass(frozen=True)
class Context:
    """The model that is evaluated, by its predict functions, and its data.

    Attributes:
      predictor: predict functions of the model.
      config: the run's configuration.
      data_root: directory of the dataset, where the config names no sources.
      step: of the checkpoint.
    """

    predictor: Predictor
    config: Config
    data_root: Path
    step: int

    @property
    def options(self) -> EvaluateConfig:
        """What all evaluators share: numbers of images and questions, pictures in a grid, batch size."""
        return self.config.evaluate

    @functools.cached_property
    def smart_watch(self) -> Path | None:
        """Directory of the run's first Smart Watch dataset; None without one.

        Raises:
          UsageError: a dataset is missing or broken.
        """
        return next(iter(held_out.smart_watches(self.config, self.data_root).values()), None)

    def requests(self) -> Requests | None:
        """Held-out requests for images: of Smart Watch, else of the first dataset that has some; None without any.

        Raises:
          UsageError: a dataset is missing or broken.
        """
        config = self.config
        if self.smart_watch is not None and mode_weights(config)["generation"]:
            return smart_watch.requests(self.smart_watch, config.data.image_size, config.evaluate.images)
        entries = held_out.entries(config, self.data_root, held_out.TEST)
        return next((found for entry in entries if (found := held_out.requests(config, entry)) is not None), None)


@dataclass(frozen=True)
class Result:
    """What an evaluator found; empty where it has nothing to measure.

    Attributes:
      numbers: nested dicts and lists of numbers and texts, for ``eval.json``.
      table: lines for the screen.
      files: what is written into the workdir, by file name: an image [H, W, 3] uint8, a matplotlib figure, or bytes.
    """

    numbers: Mapping[str, Any] = field(default_factory=dict)
    table: Sequence[str] = ()
    files: Mapping[str, Any] = field(default_factory=dict)
