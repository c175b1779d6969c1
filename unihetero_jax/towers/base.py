"""What the model asks of a tower, and how a tower is run on the images that need it.

B rows, K images per row, N tokens, F feature width, S numbers stored per token, G groups of rows, M images that a group
has room for.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from unihetero_jax.config.components import TOWERS, TowerConfig

Encode = Callable[[jax.Array], jax.Array]


class Tower(nnx.Module):
    """Pixels to features.

    A tower is given the batch's raw images; it resizes and normalizes for itself, inside the compiled step. A subclass
    is made from its config section, the image size of the batch, and ``rngs``.

    Attributes:
      tokens: N, visual tokens per image.
      width: F, of a feature.
    """

    tokens: int
    width: int

    def __call__(self, images_BKHWC: UInt8[Array, "B K H W 3"], mesh: Mesh | None = None) -> Float[Array, "B K N F"]:
        """Features of every image, float32.

        Args:
          images_BKHWC: raw images.
          mesh: the rows are split over it.
        """
        raise TypeError(f"{type(self).__name__}: a tower needs a __call__")

    def stored(self, images_BKHWC: UInt8[Array, "B K H W 3"], mesh: Mesh | None = None) -> Float[Array, "B K N S"]:
        """What a batch brings where features are computed before; arguments as of a call."""
        return self(images_BKHWC, mesh)

    def features_of(self, stored_BKNS: Float[Array, "B K N S"], key: jax.Array | None) -> Float[Array, "B K N F"]:
        """The features of what is stored.

        Args:
          stored_BKNS: as ``stored`` gives it.
          key: for features that are drawn at random in training; without it their mean is taken.
        """
        del key
        return stored_BKNS


def make_tower(config: TowerConfig, image_size: int, key: str, rngs: nnx.Rngs) -> Tower:
    """The tower of a config section, with random parameters.

    Args:
      config: the section.
      image_size: pixels per side of the batch's images.
      key: where the section is, such as ``config.model.understanding_tower``.
      rngs: for initialization.
    """
    tower: Tower = TOWERS.find(config.kind, f"{key}.kind")(config, image_size, rngs=rngs)
    return tower


def run_where(
    encode: Encode,
    shape: tuple[int, int],
    images_BKHWC: UInt8[Array, "B K H W 3"],
    needed_BK: Bool[Array, "B K"],
    *,
    capacity: int | None = None,
    groups: int = 1,
) -> Float[Array, "B K N F"]:
    """Features of the images that are needed, zeros for the others.

    Shapes are fixed when a step is compiled, how many images are needed is not. So the needed images are gathered to
    the front of a buffer of ``capacity`` images, the tower runs on the buffer, and its features are scattered back;
    cost follows the capacity. A batch that needs none runs nothing, and one that needs more than there is room for
    runs the tower on all its images: features are always right, a capacity that is too small only costs time. (Under
    ``jax.vmap`` all three ways would be computed.)

    Rows are taken in ``groups`` of neighbors, each with its share of the capacity; with one group a device along the
    batch, images stay on their device. More groups need a little more room, since none may overflow.

    Args:
      encode: what to run: images to features, or to what is stored in their place.
      shape: tokens per image, and numbers per token, that it gives.
      images_BKHWC: the batch's raw images.
      needed_BK: which of them need features.
      capacity: images per batch that the buffer has room for, rounded up to a multiple of ``groups``; all by default,
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
    full = (rows, count, *shape)
    needed_GI = needed_BK.reshape(groups, each)

    def none() -> jax.Array:
        return jnp.zeros(full, jnp.float32)

    def everything() -> jax.Array:
        return jnp.where(needed_BK[:, :, None, None], encode(images_BKHWC), 0.0)

    def gathered() -> jax.Array:
        images_GI = images_BKHWC.reshape(groups, each, *images_BKHWC.shape[2:])
        return _gathered(encode, shape, images_GI, needed_GI, room).reshape(full)

    if room == each:
        return jax.lax.cond(jnp.any(needed_BK), everything, none)
    most = jnp.max(jnp.sum(needed_GI, axis=1))
    return jax.lax.switch(jnp.int32(most > 0) + jnp.int32(most > room), [none, gathered, everything])


def _gathered(
    encode: Encode, shape: tuple[int, int], images_GI: jax.Array, needed_GI: jax.Array, room: int
) -> jax.Array:
    """Features [G, I, N, F] of each group's needed images, which are no more than ``room``; zeros for the others."""
    groups, each = needed_GI.shape
    # Entries without an image point behind the last: they read the last image, and are dropped when scattered.
    index_GM = jax.vmap(lambda needed: jnp.nonzero(needed, size=room, fill_value=each)[0])(needed_GI)
    chosen = jax.vmap(lambda images, index: jnp.take(images, index, axis=0, mode="clip"))(images_GI, index_GM)
    features = encode(chosen)
    empty = jnp.zeros((groups, each, *shape), jnp.float32)
    return jax.vmap(lambda into, index, made: into.at[index].set(made, mode="drop"))(empty, index_GM, features)
