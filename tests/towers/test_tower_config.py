"""Presets are the published models, and configs that cannot be built are refused in one line."""

import dataclasses
import math

import jax
import pytest
from flax import nnx

from unihetero_jax.config import TowerConfig
from unihetero_jax.config.components import TOWERS
from unihetero_jax.config.tree import build, check
from unihetero_jax.errors import UsageError
from unihetero_jax.towers.common.autoencoder.config import KL16, KL16_TINY
from unihetero_jax.towers.common.vit.weights import make_vit


def section(kind: str, **values) -> TowerConfig:
    """A tower's section as a config makes it."""
    return build(TOWERS.config(kind)(), values, "tower")


PRESETS = {
    name: section(kind, preset=name) for kind in ("dinov2", "siglip", "clip") for name in TOWERS.config(kind).presets
}


def pooling_head(width, mlp_width):
    """SigLIP's: a probe, attention with joint projection, a norm and an MLP."""
    return width + (3 * width + 3) * width + (width + 1) * width + 2 * width + 2 * width * mlp_width + width + mlp_width


# What the hub's pages count, less what serves no hidden state: DINOv2's mask token, SigLIP's pooling head, CLIP's last
# norm.
PARAMETERS = {
    "dinov2-small": 22_056_576 - 384,
    "dinov2-base": 86_580_480 - 768,
    "dinov2-large": 304_368_640 - 1024,
    "dinov2-giant": 1_136_480_768 - 1536,
    "dinov2-with-registers-base": 86_583_552 - 768,
    "siglip-base-patch16-224": 92_884_224 - pooling_head(768, 3072),
    "siglip-so400m-patch14-384": 428_225_600 - pooling_head(1152, 4304),
    "clip-vit-large-patch14": 303_179_776 - 2048,
    "clip-vit-large-patch14-336": 303_507_456 - 2048,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_published_number_of_parameters(name):
    shapes = nnx.eval_shape(lambda: nnx.state(make_vit(PRESETS[name], nnx.Rngs(0)), nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


def test_presets_give_the_published_tokens():
    tokens = {name: config.tokens(64, "tower") for name, config in PRESETS.items()}
    assert tokens["dinov2-with-registers-giant"] == 256
    assert tokens["siglip-base-patch16-224"] == 196
    assert tokens["siglip-so400m-patch14-384"] == 729
    assert tokens["clip-vit-large-patch14"] == 256
    assert tokens["clip-vit-large-patch14-336"] == 576
    for name, config in PRESETS.items():
        check(config, name)


def test_a_section_names_the_nearest_preset_of_its_kind():
    with pytest.raises(UsageError, match=r"tower\.preset='dinov2-smal': .*did you mean 'dinov2-small'"):
        section("dinov2", preset="dinov2-smal")
    with pytest.raises(UsageError, match=r"tower\.preset='kl16': expected one of vq16, vq16-tiny with .*'vq16'"):
        section("vq16", preset="kl16")


def test_with_a_preset_the_section_says_how_it_is_used_and_nothing_else():
    vit = section("clip", preset="clip-tiny", layer=-2, dtype="bfloat16")
    assert vit == dataclasses.replace(PRESETS["clip-tiny"], layer=-2, dtype="bfloat16")
    # Also where it is the published one: no value is taken for "not given".
    for scale in (KL16.latent_scale, 0.7):
        tower = dataclasses.asdict(section("kl16", preset="kl16-tiny", latent_scale=scale))
        expected = dataclasses.asdict(dataclasses.replace(KL16_TINY, latent_scale=scale))
        assert {name: tower[name] for name in expected} == expected
    with pytest.raises(UsageError, match=r"tower\.latent=3 beside tower\.preset='kl16-tiny', which fixes it"):
        section("kl16", preset="kl16-tiny", latent=3)


SMALL = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 32, "patch_size": 8, "image_size": 16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, r"tower.heads=3 does not divide tower.width=16"),
        ({"layers": 0}, r"tower.layers=0: expected a value above 0"),
        ({"input_size": 4}, r"tower.input_size=4 is smaller than one patch of 8"),
        ({"shortest_edge": 8}, r"tower.shortest_edge=8: expected 0 or at least 16"),
        ({"layer": 0}, r"tower.layer=0: expected −1 .* to -3"),
        ({"layer": -4}, r"tower.layer=-4"),
        ({"registers": 2}, r"tower.registers and tower.swiglu belong to dinov2"),
        ({"class_token": True}, r"tower.class_token=True: siglip has no class token"),
        ({"cached": True, "training": "trained"}, r"tower.cached=True with training='trained'"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        check(section("siglip", **(SMALL | changes)), "tower")
