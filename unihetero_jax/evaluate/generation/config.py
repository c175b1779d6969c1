"""Config section of the evaluator of generated images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unihetero_jax.config.components import EVALUATORS, EvaluatorConfig
from unihetero_jax.config.constraints import FilePath, PositiveInt
from unihetero_jax.errors import UsageError
from unihetero_jax.towers.common.attribute_classifier.config import AttributeClassifierConfig


@EVALUATORS.section("generation")
@dataclass(frozen=True)
class GenerationConfig(EvaluatorConfig):
    """Images generated from ``config.evaluate.images`` held-out requests, compared with the true images.

    Attributes:
      attribute_classifier: workdir of ``unihetero towers train attribute_classifier``, which then predicts the
        attributes of generated watches; empty: only corners and colors are compared.
      frechet: workdir of ``unihetero towers train``, whose features give the Fréchet distance of generated images from
        real ones; empty: no distance.
      probes: predict attributes from generated embeddings of watches, by linear probes of true embeddings.
      training_images: training images that the probes are fitted on and that the Fréchet distance compares with.
      save_images: write all generated images beside the true ones to ``drawn.npz``, for other tools
        (``python -m unihetero_jax.evaluate.generation.frechet`` compares features that they compute).
    """

    attribute_classifier: FilePath = ""
    frechet: FilePath = ""
    probes: bool = False
    training_images: PositiveInt = 1000
    save_images: bool = False

    def check_files(self, key: str) -> None:
        """Refuse a classifier or tower that is missing, or that is of another kind."""
        # Here, because it imports JAX, which a config is read without.
        from unihetero_jax.towers.common.stored import read_tower

        for name, place in (("attribute_classifier", self.attribute_classifier), ("frechet", self.frechet)):
            if not place:
                continue
            try:
                tower = read_tower(Path(place))
            except UsageError as error:
                raise UsageError(f"{key}.{name}: {error}") from None
            if name == "attribute_classifier" and not isinstance(tower, AttributeClassifierConfig):
                raise UsageError(
                    f"{key}.{name}={place}: another kind of tower; expected a workdir of `unihetero towers train "
                    "attribute_classifier`"
                )
