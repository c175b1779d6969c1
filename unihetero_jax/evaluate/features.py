"""A feature a picture by a tower of our own, for the Fréchet distance.

n pictures, H and W pixels, F width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from unihetero_jax.evaluate.readback import Reader, of_one_size
from unihetero_jax.parallel.definition import define_module
from unihetero_jax.towers.common.attribute_classifier.config import ReaderConfig
from unihetero_jax.towers.common.stored import load_tower, module_of

Features = Callable[[UInt8[np.ndarray, "n H W 3"]], Float[np.ndarray, "n F"]]


def of_tower(workdir: Path, batch_size: int = 100) -> Features:
    """Pictures → the mean of a tower's features over their tokens; of a reader, what its scores are made of.

    Args:
      workdir: of ``unihetero towers train``.
      batch_size: pictures at a time.

    Raises:
      UsageError: there is no trained tower.
    """
    config, params = load_tower(workdir)
    if isinstance(config, ReaderConfig):
        return Reader(config, params, batch_size).features
    definition = define_module(lambda rngs: module_of(config)(config, rngs=rngs))

    @jax.jit
    def run(images: jax.Array) -> jax.Array:
        tower: Any = definition.bind(params)
        return jnp.mean(tower(images[:, None])[:, 0], axis=1)

    def features(images: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(run(part)) for part in of_one_size(images, batch_size)])[: len(images)]

    return features
