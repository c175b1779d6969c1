"""One feature vector per image by a trained tower, for the Fréchet distance.

n images, H and W pixels, F width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from unihetero_jax.evaluate.common.attribute_classifier import TrainedClassifier, same_size_parts
from unihetero_jax.parallel.module_definition import define_module
from unihetero_jax.towers.common.attribute_classifier.config import AttributeClassifierConfig
from unihetero_jax.towers.common.stored import load_tower, module_of

Features = Callable[[UInt8[np.ndarray, "n H W 3"]], Float[np.ndarray, "n F"]]


def tower_features(workdir: Path, batch_size: int = 100) -> Features:
    """Images → mean of a tower's features over the tokens; of an attribute classifier, what its scores come from.

    Args:
      workdir: of ``unihetero towers train``.
      batch_size: images at a time.

    Raises:
      UsageError: there is no trained tower.
    """
    config, params = load_tower(workdir)
    if isinstance(config, AttributeClassifierConfig):
        return TrainedClassifier(config, params, batch_size).features
    definition = define_module(lambda rngs: module_of(config)(config, rngs=rngs))

    @jax.jit
    def run(images: jax.Array) -> jax.Array:
        tower: Any = definition.bind(params)
        return jnp.mean(tower(images[:, None])[:, 0], axis=1)

    def features(images: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(run(part)) for part in same_size_parts(images, batch_size)])[: len(images)]

    return features
