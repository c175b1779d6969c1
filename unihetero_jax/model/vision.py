"""What a model's towers give for a batch: features of the images whose role needs them.

B rows, K images per row, N tokens per image, F feature width, S numbers stored per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from unihetero_jax.config.components import TowerConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.towers.base import Tower, make_tower, run_where

Batch = Mapping[str, jax.Array]

# What an image of a row is for: see the packed batch.
INPUT, TARGET, BOTH = 1, 2, 3


def make_encoder(config: TowerConfig, image_size: int, name: str, rngs: nnx.Rngs) -> Any:
    """Build the tower of a section; None where its features come with the batch and it decodes nothing.

    Args:
      config: the section.
      image_size: pixels per side of the batch's images.
      name: of the tower, such as ``understanding_tower``.
      rngs: for initialization.
    """
    if config.cached and not config.decodes:
        return None
    return make_tower(config, image_size, f"config.model.{name}", rngs)


def encode(
    tower: Tower | None,
    config: TowerConfig,
    name: str,
    batch: Batch,
    needed_BK: Bool[Array, "B K"],
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B K N F"]:
    """Return the float32 features of the images that need them; those that came with the batch where cached.

    Args:
      tower: made by ``make_encoder``.
      config: its section.
      name: of the tower; the batch's own features are ``{name}_features``.
      batch: a packed batch.
      needed_BK: which images.
      key: for features that are sampled in training; without it their mean is taken.
      mesh: the batch's rows are split over it.

    Raises:
      UsageError: features should come with the batch and do not, or have another shape; there are no images.
    """
    stored = encode_stored(tower, config, name, batch, needed_BK, mesh)
    return stored if tower is None else tower.features_of(stored, key)


def encode_stored(
    tower: Tower | None,
    config: TowerConfig,
    name: str,
    batch: Batch,
    needed_BK: Bool[Array, "B K"],
    mesh: Mesh | None = None,
) -> Float[Array, "B K N S"]:
    """Return the stored form of the features of the images that need them; arguments and errors as of ``encode``."""
    if config.cached:
        return _given(config, name, batch, needed_BK)
    assert tower is not None
    if "images" not in batch:
        raise UsageError(f"config.model.{name} encodes images: the batch has none; it has {', '.join(batch)}")
    if not config.cacheable:
        # Cheaper than finding out which images need it.
        return tower.stored(batch["images"])
    groups = 1 if mesh is None else mesh.shape["slice"] * mesh.shape["fsdp"]
    rows, images = needed_BK.shape
    # A batch that the mesh does not divide is on one device, or replicated.
    groups = groups if rows % groups == 0 else 1
    capacity = None if config.capacity == 1 else math.ceil(config.capacity * rows * images)
    split = mesh if groups > 1 else None
    shape = (tower.tokens, config.stored_features)
    return run_where(
        lambda images: tower.stored(images, split), shape, batch["images"], needed_BK, capacity=capacity, groups=groups
    )


def _given(config: TowerConfig, name: str, batch: Batch, needed_BK: jax.Array) -> jax.Array:
    key = f"{name}_features"
    if key not in batch:
        raise UsageError(f"config.model.{name}.cached=True: the batch has no {key}; it has {', '.join(batch)}")
    # A tower whose tokens depend on the size of the batch's images is not cacheable.
    expected = (*needed_BK.shape, config.tokens(0, f"config.model.{name}"), config.stored_features)
    if batch[key].shape != expected:
        raise UsageError(f"the batch's {key} is {batch[key].shape}, expected {expected}")
    return jnp.where(needed_BK[:, :, None, None], batch[key].astype(jnp.float32), 0.0)
