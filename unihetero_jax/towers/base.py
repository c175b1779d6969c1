"""What the model asks of a tower, and how a tower is run on the images that need it.

B rows, K images a row, N tokens, F feature width, G groups of rows, M images that a group has room for.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from unihetero_jax.towers.clip.network import CLIP
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.network import VisionTransformer
from unihetero_jax.towers.dinov2.network import DINOv2
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.towers.patch.network import PatchTower, RawPatches
from unihetero_jax.towers.sections import TowerConfig, kl_config, vit_config, vq_config
from unihetero_jax.towers.siglip.network import SigLIP
from unihetero_jax.towers.vq16.network import VQ16


@runtime_checkable
class Tower(Protocol):
    """Pixels → features: ``tokens`` visual tokens an image, each ``width`` wide.

    A tower is shown the batch's raw images; it resizes and normalises for itself, inside the compiled step.
    """

    @property
    def tokens(self) -> int:
        """Visual tokens an image, N."""

    @property
    def width(self) -> int:
        """Width of a feature, F."""

    def __call__(self, images_BKHWC: UInt8[Array, "B K H W 3"]) -> Float[Array, "B K N F"]:
        """Features of every image, float32."""


def make_vit(config: ViTConfig, rngs: nnx.Rngs) -> VisionTransformer:
    """The vision transformer of a config, with random parameters."""
    return {"dinov2": DINOv2, "siglip": SigLIP, "clip": CLIP}[config.family](config, rngs=rngs)


def make_tower(config: TowerConfig, image_size: int, key: str, rngs: nnx.Rngs) -> nnx.Module:
    """The tower of a config section, with random parameters.

    Args:
      config: the section.
      image_size: pixels a side of the batch's images.
      key: where the section is, such as ``config.model.understanding_tower``.
      rngs: for initialisation.

    Raises:
      UsageError: the section does not describe a tower.
    """
    if config.kind == "patch":
        return PatchTower(config.patch, image_size, rngs=rngs)
    if config.kind == "pixels":
        return RawPatches(config.patch.patch_size, image_size)
    if config.kind == "vq16":
        return VQ16(vq_config(config, key), rngs=rngs)
    if config.kind == "kl16":
        return KL16(kl_config(config, key), rngs=rngs)
    return make_vit(vit_config(config, key), rngs)


def run_where(
    tower: Tower,
    images_BKHWC: UInt8[Array, "B K H W 3"],
    needed_BK: Bool[Array, "B K"],
    *,
    capacity: int | None = None,
    groups: int = 1,
) -> Float[Array, "B K N F"]:
    """A tower's features of the images that are needed, zeros for the others.

    Shapes are fixed when a step is compiled, how many images are needed is not. So the needed images are gathered to
    the front of a buffer of ``capacity`` images, the tower runs on the buffer, and its features are scattered back;
    cost follows the capacity. A batch that needs none runs nothing, and one that needs more than there is room for
    runs the tower on all its images: features are always right, a capacity that is too small only costs time. (Under
    ``jax.vmap`` all three ways would be computed.)

    Rows are taken in ``groups`` of neighbours, each with its share of the capacity; with one group a device along the
    batch, images stay on their device. More groups need a little more room, since none may overflow.

    Args:
      tower: what to run.
      images_BKHWC: the batch's raw images.
      needed_BK: which of them need features.
      capacity: images a batch that the buffer has room for, rounded up to a multiple of ``groups``; all by default,
        which only saves batches that need none.
      groups: how many parts the rows are taken in; divides B.

    Raises:
      ValueError: ``groups`` does not divide the rows, or a capacity below one.
    """
    rows, count = needed_BK.shape
    if rows % groups:
        raise ValueError(f"groups={groups} does not divide {rows} rows")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity={capacity}; expected at least 1")
    each = rows // groups * count
    room = each if capacity is None else min(-(-capacity // groups), each)
    shape = (rows, count, tower.tokens, tower.width)
    needed_GI = needed_BK.reshape(groups, each)

    def none() -> jax.Array:
        return jnp.zeros(shape, jnp.float32)

    def everything() -> jax.Array:
        return jnp.where(needed_BK[:, :, None, None], tower(images_BKHWC), 0.0)

    def gathered() -> jax.Array:
        images_GI = images_BKHWC.reshape(groups, each, *images_BKHWC.shape[2:])
        # Entries without an image point behind the last: they read the last image, and are dropped when scattered.
        index_GM = jax.vmap(lambda needed: jnp.nonzero(needed, size=room, fill_value=each)[0])(needed_GI)
        chosen = jax.vmap(lambda images, index: jnp.take(images, index, axis=0, mode="clip"))(images_GI, index_GM)
        features = tower(chosen)
        empty = jnp.zeros((groups, each, *shape[2:]), jnp.float32)
        filled = jax.vmap(lambda into, index, made: into.at[index].set(made, mode="drop"))(empty, index_GM, features)
        return filled.reshape(shape)

    if room == each:
        return jax.lax.cond(jnp.any(needed_BK), everything, none)
    most = jnp.max(jnp.sum(needed_GI, axis=1))
    return jax.lax.switch(jnp.int32(most > 0) + jnp.int32(most > room), [none, gathered, everything])
