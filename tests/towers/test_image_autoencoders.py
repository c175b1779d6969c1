"""Image autoencoders as towers: features of raw images, codes and latents and back, on one device and on several."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from PIL import Image

from unihetero_jax.config import MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.mesh import RULES, check_sharded, make_mesh, sharding
from unihetero_jax.towers.common.autoencoder.blocks import analyse, synthesise
from unihetero_jax.towers.common.autoencoder.config import KL16_TINY, VQ16_TINY, KLConfig, VQConfig
from unihetero_jax.towers.common.autoencoder.images import to_signed, to_uint8
from unihetero_jax.towers.kl16.config import KL16Config
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.towers.vq16.network import VQ16

SIZES = {
    "image_size": 16,
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "encoder_attention": (1,),
    "decoder_attention": (1,),
    "groups": 4,
}
VQ_CONFIG = VQConfig(**SIZES, hidden=16, codes=64)
KL_CONFIG = KLConfig(**SIZES, latent=8, latent_scale=0.5)


@pytest.fixture(scope="module")
def vq():
    return VQ16(VQ_CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def kl():
    return KL16(KL_CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 2, 16, 16, 3), dtype=np.uint8))


def test_vq_features_are_the_codes_of_each_image(vq, images):
    assert (vq.tokens, vq.width) == (64, 8)
    features, indices = jax.jit(vq)(images), jax.jit(vq.indices)(images)
    assert (features.shape, indices.shape) == ((8, 2, 64, 8), (8, 2, 64))
    assert features.dtype == jnp.float32
    one = images[3, 1].astype(jnp.float32)[None] / 127.5 - 1
    latent, alone = vq.encode(one)
    np.testing.assert_array_equal(indices[3, 1], alone[0])
    np.testing.assert_allclose(features[3, 1].reshape(8, 8, 8), latent[0], atol=1e-6)
    assert len(np.unique(indices)) > 8, "an untrained codebook is within reach"


def test_vq_chooses_the_nearest_unit_code_whatever_the_lengths(vq):
    continuous = np.random.default_rng(1).normal(size=(2, 8, 8, 8)).astype(np.float32)
    table = np.asarray(vq.codebook[...])
    table = table / np.linalg.norm(table, axis=-1, keepdims=True)
    normed = continuous / np.linalg.norm(continuous, axis=-1, keepdims=True)
    distance = np.square(normed.reshape(-1, 1, 8) - table).sum(axis=-1)
    found = vq.quantize(5 * continuous)
    np.testing.assert_array_equal(found.indices.reshape(-1), distance.argmin(axis=-1))
    np.testing.assert_allclose(found.unit, normed, atol=1e-6)
    np.testing.assert_allclose(found.latent.reshape(-1, 8), table[distance.argmin(axis=-1)], atol=1e-6)
    longer = VQ16(VQ_CONFIG, rngs=nnx.Rngs(0))
    longer.codebook.set_value(vq.codebook[...] * jnp.linspace(0.5, 2, 64)[:, None])
    np.testing.assert_array_equal(longer.quantize(continuous).indices, found.indices)
    np.testing.assert_allclose(longer.codes(found.indices), vq.codes(found.indices), atol=1e-6)


def test_vq_decodes_indices_as_their_latents(vq, images):
    latent, indices = vq.encode(to_signed(images[:2], 16))
    decoded = vq.decode(indices)
    assert decoded.shape == (4, 16, 16, 3)
    np.testing.assert_allclose(decoded, vq.decode_latent(latent), atol=1e-5)
    assert np.abs(decoded - vq.decode(indices[:, ::-1])).max() > 1e-3


def test_kl_features_are_the_scaled_mean_or_a_sample(kl, images):
    assert (kl.tokens, kl.width) == (64, 8)
    signed = to_signed(images, 16)
    mean, logvar = jax.jit(kl.posterior)(signed)
    features = jax.jit(kl)(images)
    np.testing.assert_allclose(features.reshape(mean.shape), 0.5 * mean, atol=1e-5)
    key = jax.random.key(3)
    drawing = KL16(KL16Config(**dataclasses.asdict(KL_CONFIG), sample=True), rngs=nnx.Rngs(0))
    nnx.update(drawing, nnx.state(kl))
    stored = jax.jit(drawing.stored)(images)
    np.testing.assert_allclose(drawing.features_of(stored, None), features, atol=1e-5)
    sampled = drawing.features_of(stored, key)
    np.testing.assert_allclose(sampled.reshape(mean.shape), 0.5 * kl.sample(key, mean, logvar), atol=1e-5)
    np.testing.assert_allclose(kl.decode_features(features[0]), kl.decode(mean[:2]), atol=1e-4)


def test_kl_samples_have_the_posterior_s_moments(kl):
    mean, logvar = jnp.full((1, 100, 100, 8), 0.7), jnp.full((1, 100, 100, 8), -1.5)
    sample = np.asarray(kl.sample(jax.random.key(0), mean, logvar))
    assert sample.mean() == pytest.approx(0.7, abs=0.01)
    assert np.log(sample.var()) == pytest.approx(-1.5, abs=0.03)


def test_kl_variances_stay_within_the_published_bounds(images):
    model = KL16(KL_CONFIG, rngs=nnx.Rngs(0))
    model.quant_conv.bias.set_value(jnp.repeat(jnp.asarray([0.0, 1e4, -1e4]), jnp.asarray([8, 4, 4])))
    _, logvar = jax.jit(model.posterior)(to_signed(images[:1], 16))
    np.testing.assert_array_equal(np.unique(logvar[..., :4]), [20])
    np.testing.assert_array_equal(np.unique(logvar[..., 4:]), [-30])


@pytest.mark.parametrize("size", [11, 40])
def test_images_are_resized_as_pillow_does(size):
    smooth = np.random.default_rng(0).integers(0, 256, (2, 3, 7, 7, 3), dtype=np.uint8)
    large = np.kron(smooth, np.ones((1, 1, 3, 3, 1), np.uint8))
    found = to_uint8(to_signed(large, size)).astype(np.int32)
    for index, image in enumerate(large.reshape(-1, 21, 21, 3)):
        expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), np.int32)
        assert np.abs(found[index] - expected).max() <= 1
        assert (found[index] == expected).mean() > 0.98


def test_a_tower_resizes_for_itself(vq, images):
    larger = jnp.repeat(jnp.repeat(images[:1], 2, axis=2), 2, axis=3)
    assert vq(larger).shape == (1, 2, 64, 8)
    np.testing.assert_array_equal(to_signed(images[:1], 16), images[0].astype(jnp.float32) / 127.5 - 1)


def test_pictures_are_clipped():
    np.testing.assert_array_equal(to_uint8(jnp.asarray([[[[-1.5, 0.0, 1.5]]]])), [[[[0, 128, 255]]]])


@pytest.mark.parametrize("side", [2, 4])
def test_patches_are_mean_colour_and_detail(side):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 16, 3)), jnp.float32)
    patches = analyse(images, side)
    assert patches.shape == (2, 8 // side, 16 // side, side * side * 3)
    means = images.reshape(2, 8 // side, side, 16 // side, side, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(patches[..., :3], side * means, atol=1e-5)
    flat = analyse(jnp.ones((1, side, side, 3)), side)
    np.testing.assert_allclose(flat[..., 3:], 0, atol=1e-6)
    # Lengths are kept, so that an error weighs the same in coefficients as in pixels.
    np.testing.assert_allclose(jnp.sum(jnp.square(patches)), jnp.sum(jnp.square(images)), rtol=1e-5)
    np.testing.assert_allclose(synthesise(patches, side), images, atol=1e-5)
    # Top left is first: a lone pixel stays in its patch.
    lone = analyse(images * 0 + jnp.zeros((8, 16, 1)).at[side, 0].set(1.0), side)
    assert np.argwhere(np.abs(lone).sum(axis=(0, 3))).tolist() == [[1, 0]]


@pytest.mark.parametrize(("kind", "config"), [(VQ16, VQ_CONFIG), (KL16, KL_CONFIG)])
def test_a_stem_stands_for_levels_of_full_size(kind, config, images):
    config = dataclasses.replace(config, stem=4)
    assert (config.reduction, config.grid) == (8, 2)
    model = kind(config, rngs=nnx.Rngs(0))
    assert model(images).shape == (8, 2, 4, 8)
    assert model.encoder.conv_in.kernel.shape == (3, 3, 48, 8)
    assert model.decode_grid(jnp.zeros((1, 2, 2, 8))).shape == (1, 16, 16, 3)


def test_positions_are_learned_at_both_ends(images):
    model = VQ16(dataclasses.replace(VQ_CONFIG, positions=True), rngs=nnx.Rngs(0))
    same = jnp.zeros((1, 16, 16, 3))
    # Far from the border all places are alike to convolutions, but not to these.
    assert np.abs(np.diff(model.encoder(same)[0, 3:5, 3:5].reshape(4, -1), axis=0)).max() > 1e-2
    assert model.encoder.positions.table.shape == (16, 16, 8)
    assert model.decoder.positions.table.shape == (8, 8, 16)
    paths = {str(path[-2:]) for path, _ in nnx.to_flat_state(nnx.state(VQ16(VQ_CONFIG, rngs=nnx.Rngs(0)), nnx.Param))}
    assert not any("positions" in path for path in paths), "the published parameters are unchanged"


def test_the_canvas_is_zero_to_the_network(images):
    models = [VQ16(dataclasses.replace(VQ_CONFIG, canvas=canvas), rngs=nnx.Rngs(0)) for canvas in (0.0, 1.0)]
    signed = to_signed(images[:1], 16)
    np.testing.assert_allclose(*(model.encode(signed + model.config.canvas)[0] for model in models), atol=1e-5)
    zero, white = (model.decode(jnp.arange(64)[None]) for model in models)
    np.testing.assert_allclose(white, zero + 1.0, atol=1e-6)


def places(params, mesh):
    def where(variable):
        axes = variable.get_metadata()["axes"]
        return variable.replace(NamedSharding(mesh, RULES.spec(axes, variable.get_value().shape, mesh)))

    return jax.tree.map(where, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def test_sharded_features_and_gradients_are_the_unsharded_ones(vq, images):
    graph, params = nnx.split(vq)
    mesh = make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])

    @jax.jit
    def both(params, images):
        def loss(params):
            model = nnx.merge(graph, params)
            features = model(images)
            return jnp.mean(jnp.square(model.decode_latent(features.reshape(-1, 8, 8, 8)))), features

        (_, features), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return features, grads

    plain = both(params, images[:4])
    split = both(jax.device_put(params, places(params, mesh)), jax.device_put(images[:4], sharding(mesh, "batch")))
    for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4 * max(1e-2, float(jnp.abs(left).max())))


@pytest.mark.parametrize("config", [VQConfig(), KLConfig(), VQ16_TINY, KL16_TINY])
def test_nothing_large_stays_replicated(config):
    kind = VQ16 if isinstance(config, VQConfig) else KL16
    params = nnx.state(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))), nnx.Param)
    assert check_sharded(params, places(params, make_mesh(MeshConfig(fsdp=8), jax.devices()))) <= 0.02


@pytest.mark.parametrize("config", [VQ16_TINY, KL16_TINY])
def test_small_twins_have_64_tokens(config):
    model = nnx.eval_shape(lambda: (VQ16 if config is VQ16_TINY else KL16)(config, rngs=nnx.Rngs(0)))
    assert model.tokens == 64
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) < 900_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 10}, r"VQConfig\.channels=10: expected a multiple of groups=4"),
        ({"image_size": 15}, r"VQConfig\.image_size=15: expected a multiple of 2"),
        ({"decoder_attention": (2,)}, r"VQConfig\.decoder_attention=\(2,\): expected levels 0 to 1"),
        ({"stem": 0}, r"VQConfig\.stem=0: expected 1 or more pixels"),
        ({"stem": 3}, r"VQConfig\.image_size=16: expected a multiple of 6, by which stem and 2 levels reduce it"),
        ({"multipliers": ()}, r"VQConfig\.multipliers=\(\): expected a width"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(VQ_CONFIG, **changes)
