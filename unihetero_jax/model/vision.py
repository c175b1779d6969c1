"""What a model's towers see in a batch: features, codes and latents of the images whose role needs them.

B rows, K images a row, N tokens an image, F feature width, E width of a KL latent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from unihetero_jax.errors import UsageError
from unihetero_jax.towers.base import make_tower, run_where
from unihetero_jax.towers.common.autoencoder.images import to_signed
from unihetero_jax.towers.common.vit.network import VisionTransformer
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.towers.sections import TowerConfig, tower_tokens, tower_width
from unihetero_jax.towers.vq16.network import VQ16

Batch = Mapping[str, jax.Array]

# What an image of a row is for: see the packed batch.
INPUT, TARGET, BOTH = 1, 2, 3

# Towers that do nothing but see: a model that is given their features is without them.
ONLY_SEE = ("dinov2", "siglip", "clip")


class _Moments:
    """A KL tower that gives mean and log variance side by side, so that noise is drawn for all images alike."""

    def __init__(self, tower: KL16):
        self._tower = tower
        self.tokens, self.width = tower.tokens, 2 * tower.width

    def __call__(self, images_BKHWC: jax.Array) -> jax.Array:
        moments = self._tower.posterior(to_signed(images_BKHWC, self._tower.config.image_size))
        return jnp.concatenate(moments, axis=-1).reshape(*images_BKHWC.shape[:2], self.tokens, self.width)


class _Spread:
    """A vision transformer whose activations keep the split of the images over the mesh."""

    def __init__(self, tower: VisionTransformer, mesh: Mesh | None):
        self._tower, self._mesh = tower, mesh
        self.tokens, self.width = tower.tokens, tower.width

    def __call__(self, images_BKHWC: jax.Array) -> jax.Array:
        return self._tower(images_BKHWC, self._mesh)


class _Indices:
    """A VQ tower that gives the indices of its codes: whole numbers up to 2²⁴, which float32 holds."""

    def __init__(self, tower: VQ16):
        self._tower = tower
        self.tokens, self.width = tower.tokens, 1

    def __call__(self, images_BKHWC: jax.Array) -> jax.Array:
        return self._tower.indices(images_BKHWC).astype(jnp.float32)[..., None]


def make_sight(config: TowerConfig, image_size: int, name: str, rngs: nnx.Rngs) -> Any:
    """The tower of a section, or None where its features come with the batch and nothing is decoded by it.

    Args:
      config: the section.
      image_size: pixels a side of the batch's images.
      name: of the tower, such as ``understanding_tower``.
      rngs: for initialisation.
    """
    if config.cached and config.kind in ONLY_SEE:
        return None
    return make_tower(config, image_size, f"config.model.{name}", rngs)


def look_ahead(tower: Any, config: TowerConfig, images_BKHWC: jax.Array) -> Float[Array, "B K N F"]:
    """What a batch has to bring as ``{name}_features`` to replace a tower: features, codes, or mean and logvar.

    Args:
      tower: made by ``make_sight`` of a section that is not ``cached``.
      config: its section.
      images_BKHWC: raw images.
    """
    if config.kind == "vq16":
        return _Indices(tower)(images_BKHWC)
    features: jax.Array = _Moments(tower)(images_BKHWC) if config.sample else tower(images_BKHWC)
    return features


def look(
    tower: Any,
    config: TowerConfig,
    name: str,
    batch: Batch,
    needed_BK: Bool[Array, "B K"],
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B K N F"]:
    """Features of the images that need them, float32; those that came with the batch if the section says so.

    Args:
      tower: made by ``make_sight``.
      config: its section.
      name: of the tower; the batch's own features are ``{name}_features``.
      batch: a packed batch.
      needed_BK: which images.
      key: for drawing KL latents from their posterior, where the section says so; without it the mean is taken.
      mesh: the batch's rows are split over it.

    Raises:
      UsageError: features are to come with the batch, and do not, or have another shape; there are no images to look
        at.
    """
    if config.kind == "vq16":
        indices = look_for_codes(tower, config, name, batch, needed_BK, mesh)
        codes: jax.Array = tower.codes(indices.reshape(-1, tower.tokens))
        return codes.reshape(*indices.shape, tower.width)
    if config.kind == "kl16" and config.sample and (config.cached or key is not None):
        moments = _given_or_seen(_Moments(tower), config, name, batch, needed_BK, 2 * tower.width, mesh)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return (mean if key is None else tower.sample(key, mean, logvar)) * tower.config.latent_scale
    return _given_or_seen(tower, config, name, batch, needed_BK, 0, mesh)


def look_for_codes(
    tower: VQ16, config: TowerConfig, name: str, batch: Batch, needed_BK: Bool[Array, "B K"], mesh: Mesh | None = None
) -> Int[Array, "B K N"]:
    """Codes of the images that need them; arguments and errors as of ``look``."""
    return _given_or_seen(_Indices(tower), config, name, batch, needed_BK, 1, mesh)[..., 0].astype(jnp.int32)


def _given_or_seen(
    tower: Any, config: TowerConfig, name: str, batch: Batch, needed_BK: jax.Array, width: int, mesh: Mesh | None
) -> jax.Array:
    if config.cached:
        key = f"{name}_features"
        if key not in batch:
            raise UsageError(f"config.model.{name}.cached=True: the batch has no {key}; it has {', '.join(batch)}")
        # Of the kinds that are cached, none has its number of tokens from the size of the batch's images.
        tokens = tower_tokens(config, 0, f"config.model.{name}")
        expected = (*needed_BK.shape, tokens, width or tower_width(config, f"config.model.{name}"))
        if batch[key].shape != expected:
            raise UsageError(f"the batch's {key} is {batch[key].shape}, expected {expected}")
        return jnp.where(needed_BK[:, :, None, None], batch[key].astype(jnp.float32), 0.0)
    if "images" not in batch:
        raise UsageError(f"config.model.{name} looks at images: the batch has none; it has {', '.join(batch)}")
    if config.kind in ("patch", "pixels"):
        # Cheaper than finding out which images need it.
        return tower(batch["images"])
    groups = 1 if mesh is None else mesh.shape["slice"] * mesh.shape["fsdp"]
    rows, images = needed_BK.shape
    # A batch that the mesh does not divide is on one device, or replicated.
    groups = groups if rows % groups == 0 else 1
    capacity = None if config.capacity == 1 else math.ceil(config.capacity * rows * images)
    spread = _Spread(tower, mesh) if isinstance(tower, VisionTransformer) and groups > 1 else tower
    return run_where(spread, batch["images"], needed_BK, capacity=capacity, groups=groups)
