"""A user's tower in one file: a section and a plain module, trained with the rest on one device and on eight."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from packed import SMALL, VOCABULARY, loss_sums, one_step, random_batch
from tiny_config import TINY

from unihetero_jax.config import resolve
from unihetero_jax.config.components import TOWERS, TowerConfig
from unihetero_jax.config.constraints import PositiveInt
from unihetero_jax.config.tree import nested
from unihetero_jax.errors import UsageError
from unihetero_jax.model import flops
from unihetero_jax.model.build import define
from unihetero_jax.towers.base import Tower


@dataclass(frozen=True)
class StripesConfig(TowerConfig):
    """Columns of the image through a linear map.

    Attributes:
      stripes: tokens per image.
      width: of a feature.
    """

    trained_by_default = True

    stripes: PositiveInt = 4
    width: PositiveInt = 24

    def tokens(self, image_size: int, key: str) -> int:
        """Stripes, which divide the image."""
        if image_size % self.stripes:
            raise UsageError(f"{key}.stripes={self.stripes} does not divide config.data.image_size={image_size}")
        return self.stripes

    @property
    def features(self) -> int:
        """Width of a feature."""
        return self.width

    def flops(self, image_size: int) -> float:
        """FLOPs of the forward pass per image."""
        return 2.0 * self.stripes * image_size * 3 * self.width


@TOWERS.register("stripes", config=StripesConfig)
class Stripes(Tower):
    """Mean colors along each stripe, through a linear layer without logical axes."""

    def __init__(self, config: StripesConfig, image_size: int, *, rngs: nnx.Rngs):
        self.tokens, self.width = config.stripes, config.width
        self.linear = nnx.Linear(image_size * 3, config.width, rngs=rngs)

    def __call__(self, images_BKHWC, mesh=None):
        """Features of every image, [B, K, N, F] float32."""
        rows, count, height, width, channels = images_BKHWC.shape
        pixels = images_BKHWC.astype(jnp.float32) / 127.5 - 1.0
        stripes = pixels.reshape(rows, count, height, self.tokens, width // self.tokens, channels).mean(axis=4)
        return self.linear(stripes.transpose(0, 1, 3, 2, 4).reshape(rows, count, self.tokens, height * channels))


OWN = {"model.understanding_tower.kind": "stripes", "model.understanding_tower.width": 32}


def own():
    kept = {key: value for key, value in (TINY | SMALL).items() if not key.startswith("model.understanding_tower.")}
    return resolve(nested({**kept, **OWN}))


def test_it_is_built_read_and_counted_like_one_of_the_packages_own():
    config = own()
    model, batch = define(config, VOCABULARY), random_batch(config)
    assert model.shapes()["understanding_tower"]["linear"]["kernel"].shape == (48, 32)
    params = jax.jit(model.init)(jax.random.key(0))
    visual = jax.jit(lambda params: model.bind(params).encode(batch))(params)
    linear = params["understanding_tower"]["linear"]
    column = (batch["images"][0, 0, :, :4].astype(np.float32) / 127.5 - 1).mean(axis=1).reshape(-1)
    np.testing.assert_allclose(
        visual.targets.features[0, 0, 0], column @ linear["kernel"] + linear["bias"], rtol=1e-4, atol=1e-5
    )
    sums, _ = loss_sums(config, model.bind(params), batch)
    assert all(np.isfinite(value) for value in sums.values())
    part = next(part for part in flops.step_parts(config, VOCABULARY) if part.name == "understanding tower")
    images = config.train.batch_size * config.data.images_per_row
    assert (part.forward, part.backward) == (images * 2 * 4 * 16 * 3 * 32, 2.0)


def test_a_step_on_eight_devices_is_the_step_on_one():
    before, alone, metrics = one_step(own())
    _, split, others = one_step(own(), split=(1, 4, 1, 2))
    kernels = [state["params"]["understanding_tower"]["linear"]["kernel"] for state in (before, alone, split)]
    assert np.abs(kernels[1] - kernels[0]).max() > 1e-4
    for left, right in zip(jax.tree.leaves(alone["params"]), jax.tree.leaves(split["params"]), strict=True):
        np.testing.assert_allclose(right, left, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stripes": 5}, r"understanding_tower\.stripes=5 does not divide config\.data\.image_size=64"),
        ({"stripes": 0}, r"understanding_tower\.stripes=0: expected a value above 0"),
        ({"patch_size": 8}, r"unknown config key config\.model\.understanding_tower\.patch_size"),
        ({"kind": "stripe"}, r"did you mean 'stripes'"),
    ],
)
def test_its_section_is_checked(changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        resolve({"model": {"understanding_tower": {"kind": "stripes", **changes}}})
