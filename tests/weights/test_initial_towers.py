"""config.init.*_tower: a run's towers start from someone's weights, which have to be of the same tower."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from unihetero_jax.config import defaults, resolve
from unihetero_jax.errors import UsageError
from unihetero_jax.model.build import define
from unihetero_jax.model.initial_weights import start_from
from unihetero_jax.parallel.mesh import evaluation_mesh
from unihetero_jax.parallel.module_definition import define_module
from unihetero_jax.run import convert_weights as main
from unihetero_jax.towers.common import stored as towers
from unihetero_jax.towers.common.autoencoder.config import KLConfig
from unihetero_jax.towers.common.vit import weights as vision
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.weights import from_hf

HF = Path(__file__).resolve().parents[1] / "fixtures" / "hf"
AUTOENCODER = {"image_size": 16, "channels": 8, "multipliers": (1, 1, 1), "blocks": 1, "groups": 4}
KL = KLConfig(**AUTOENCODER, latent=4, encoder_attention=(), decoder_attention=(), latent_scale=0.7)


def siglip_values(**changes):
    """A model whose understanding tower is that of the tiny published folder."""
    values = defaults()
    model = values.model
    model.decoder.update({"width": 32, "layers": 1, "heads": 4, "kv_heads": 4, "mlp_width": 32})
    published = vision.vit_config(json.loads((HF / "siglip" / "config.json").read_text()), "config.json")
    model.understanding_tower = {"kind": "siglip", **dataclasses.asdict(published), "layer": -2}
    values.losses.pixel.weight = 0.0
    values.update_from_flattened_dict(changes)
    return values


def started(values, devices: int = 1):
    config = resolve(values)
    model = define(config, 64)
    mesh = evaluation_mesh(8, jax.devices()[:devices])
    params = jax.jit(model.init, out_shardings=model.shardings(mesh))(jax.random.key(0))
    before = dict(params)
    return before, start_from(config, model, params, mesh)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@pytest.fixture(scope="module")
def published():
    return nnx.to_pure_dict(nnx.state(from_hf(HF / "siglip"), nnx.Param))


@pytest.mark.parametrize("devices", [1, 8])
def test_a_published_folder_becomes_the_tower_and_nothing_else_changes(published, devices):
    before, after = started(siglip_values(**{"init.understanding_tower": str(HF / "siglip")}), devices)
    assert_same(after["understanding_tower"], published)
    for name in set(after) - {"understanding_tower"}:
        assert_same(after[name], before[name])
    kernel = after["understanding_tower"]["layers"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == devices


def test_an_import_becomes_the_tower(published, tmp_path):
    main.import_weights(HF / "siglip", tmp_path / "imported")
    _, after = started(siglip_values(**{"init.understanding_tower": str(tmp_path / "imported")}))
    assert_same(after["understanding_tower"], published)


def test_frozen_towers_are_held_as_configured():
    values = siglip_values(**{"init.understanding_tower": str(HF / "siglip"), "optimizer.frozen_dtype": "bfloat16"})
    _, after = started(values)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after["understanding_tower"])} == {"bfloat16"}


def kl_values(**changes):
    values = siglip_values()
    values.data.image_size = 16
    values.model.pixel_tower = {"kind": "kl16", **dataclasses.asdict(KL)}
    # As many tokens as the autoencoder has latents.
    values.model.understanding_tower = {"kind": "patch", "patch_size": 4}
    values.losses.pixel.weight = 1.0
    values.update_from_flattened_dict(changes)
    return values


def test_a_tower_of_our_own_becomes_the_pixel_tower(tmp_path):
    definition = define_module(lambda rngs: KL16(KL, rngs=rngs))
    params = definition.init(jax.random.key(5))
    towers.save_tower(tmp_path, "kl16", KL, params)
    _, after = started(kl_values(**{"init.pixel_tower": str(tmp_path)}))
    assert_same(after["pixel_tower"], params)
    with pytest.raises(UsageError, match=r"need config\.model\.pixel_tower\.latent_scale=0\.7, not 0\.5"):
        started(kl_values(**{"init.pixel_tower": str(tmp_path), "model.pixel_tower.latent_scale": 0.5}))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (lambda: siglip_values(**{"init.understanding_tower": "nowhere"}), "nowhere: no such file or directory"),
        (lambda: siglip_values(**{"init.generation_tower": str(HF)}), "this model has no generation_tower"),
        (lambda: siglip_values(**{"init.understanding_tower": str(HF / "clip")}), "holds a clip; .*kind is 'siglip'"),
        (lambda: siglip_values(**{"init.understanding_tower": str(HF / "llama")}), "expected the folder of a siglip"),
        (
            lambda: siglip_values(
                **{"init.understanding_tower": str(HF / "siglip"), "model.understanding_tower.layers": 1}
            ),
            r"need config\.model\.understanding_tower\.layers=\d+, not 1",
        ),
        (lambda: kl_values(**{"init.pixel_tower": str(HF / "siglip")}), "holds a 'siglip.*expected 'kl16' tensors"),
    ],
)
def test_other_weights_are_refused_by_name(values, complaint):
    with pytest.raises(UsageError, match=complaint):
        started(values())
