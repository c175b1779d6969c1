"""A patch embedding that is trained in two parts, and stored as the one linear map that it is.

D width, P pixels of a patch (side · side · 3), N patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.common.vit.network import VisionTransformer

# The louder a part, the sooner it is learned; as in ``towers.patch.network``.
_GAIN = 4.0
# A white canvas, which most of a drawing is, enters as zero: a patch is what is drawn on it.
_WHITE = 1.0


class SplitPatches(nnx.Module):
    """A patch's mean color and what is left of the patch without it, each with a kernel of its own.

    Replaces a vision transformer's ``patch`` in training (``split``). ``PatchTower`` says why there are two, ``fold``
    how they become one.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.param_dtype)

        def kernel(rows: int, axes: tuple[str | None, str]) -> nnx.Param:
            initial = nnx.initializers.normal(rows**-0.5)
            return nnx.Param(initial(rngs.params(), (rows, config.width), dtype), axes=axes)

        self.detail = kernel(config.patch_size**2 * 3, ("pixels", "embed"))
        self.color = kernel(3, (None, "embed"))
        # Not zero: next to a bias, how bright a patch is turns the embedding's direction, and so outlives the norms.
        bias = nnx.initializers.normal(0.15)(rngs.params(), (config.width,), dtype)
        self.bias = nnx.Param(bias, axes=("embed",))

    def __call__(self, patches_BNP: Float[Array, "B N P"]) -> Float[Array, "B N D"]:
        """Embeddings of patches of pixels in [−1, 1]."""
        pixels = (patches_BNP - _WHITE).reshape(*patches_BNP.shape[:-1], -1, 3)
        color = jnp.mean(pixels, axis=-2, keepdims=True)
        detail = (pixels - color).reshape(patches_BNP.shape)
        parts = detail @ self.detail[...] + color[..., 0, :] @ self.color[...]
        return (_GAIN * parts + self.bias[...]).astype(patches_BNP.dtype)


def split(tower: VisionTransformer, *, rngs: nnx.Rngs) -> None:
    """Gives a tower that is to be trained a patch embedding in two parts, and louder positions beside it."""
    tower.patch = SplitPatches(tower.config, rngs=rngs)
    # An empty patch is its bias: beside it, at the usual 0.02, where it is would be lost in the norms.
    tower.positions[...] = 10.0 * tower.positions[...]


def fold(params: Mapping[str, Any]) -> dict[str, Any]:
    """The ``kernel`` [P, D] and ``bias`` [D] of the linear map that ``SplitPatches`` of these parameters is.

    A pixel's weight is that of its detail, less what the patch's mean takes off every detail, and its share in the
    mean color; what white would give goes into the bias.
    """
    detail = jnp.asarray(params["detail"])
    detail = detail.reshape(-1, 3, detail.shape[-1])
    color = jnp.asarray(params["color"]) / len(detail)
    kernel = _GAIN * (detail - jnp.mean(detail, axis=0) + color)
    kernel = kernel.reshape(-1, kernel.shape[-1])
    return {"kernel": kernel, "bias": jnp.asarray(params["bias"]) - _WHITE * jnp.sum(kernel, axis=0)}
