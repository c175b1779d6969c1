"""The autoencoders' losses: the formulas, who learns from which, how batches add up, and that training reconstructs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from unihetero_jax.towers.common.autoencoder.config import KLConfig, KLLossConfig, VQConfig, VQLossConfig
from unihetero_jax.towers.common.autoencoder.losses import (
    code_counts,
    codebook_use,
    combine,
    kl_coefficients,
    kl_loss_sums,
    vq_coefficients,
    vq_loss_sums,
)
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.towers.vq16.network import VQ16

SIZES = {
    "image_size": 8,
    "channels": 8,
    "multipliers": (1, 1),
    "blocks": 1,
    "encoder_attention": (),
    "decoder_attention": (),
    "groups": 4,
}
KEY = jax.random.key(5)
ONES = jnp.ones(4)


@pytest.fixture(scope="module")
def vq():
    return nnx.split(VQ16(VQConfig(**SIZES, hidden=8, codes=16), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def kl():
    return nnx.split(KL16(KLConfig(**SIZES, latent=4), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def images():
    """Four images of one colour each but for a brighter corner."""
    chance = np.random.default_rng(0)
    images = np.broadcast_to(chance.uniform(-0.8, 0.5, (4, 1, 1, 3)), (4, 8, 8, 3)).astype(np.float32)
    images = images.copy()
    images[:, :4, :4] += 0.3
    return jnp.asarray(images)


@functools.partial(jax.jit, static_argnums=0)
def vq_sums(graph, params, images, weight):
    return vq_loss_sums(nnx.merge(graph, params), images, weight)


@functools.partial(jax.jit, static_argnums=0)
def kl_sums(graph, params, images, weight):
    return kl_loss_sums(nnx.merge(graph, params), images, weight, KEY)


def test_vq_losses_are_the_formulas(vq, images):
    model = nnx.merge(*vq)
    sums, weight, indices = vq_sums(*vq, images, ONES)
    continuous = np.asarray(jax.jit(model.pre_quantization)(images), np.float64)
    unit = continuous / np.linalg.norm(continuous, axis=-1, keepdims=True)
    distance = np.square(np.asarray(model.codes(indices)).reshape(unit.shape) - unit).mean(axis=(1, 2, 3)).sum()
    error = np.asarray(jax.jit(model.decode)(indices) - images, np.float64)
    expected = {
        "l1": np.abs(error).mean(axis=(1, 2, 3)).sum(),
        "l2": np.square(error).mean(axis=(1, 2, 3)).sum(),
        "codebook": distance,
        "commitment": distance,
    }
    assert weight == 4
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        assert float(sums[name]) == pytest.approx(value, rel=1e-4), name
    factors = vq_coefficients(VQLossConfig(l1=2, l2=3, codebook=5, commitment=7))
    mean = (2 * expected["l1"] + 3 * expected["l2"] + 12 * distance) / 4
    assert float(combine(factors, sums, weight)) == pytest.approx(mean, rel=1e-4)


def test_kl_losses_are_the_formulas(kl, images):
    model = nnx.merge(*kl)
    sums, weight = kl_sums(*kl, images, ONES)
    mean, logvar = (np.asarray(x, np.float64) for x in jax.jit(model.posterior)(images))
    error = np.asarray(jax.jit(model.decode)(model.sample(KEY, jnp.float32(mean), jnp.float32(logvar))) - images)
    assert weight == 4
    expected = {
        "l1": np.abs(error).mean(axis=(1, 2, 3)).sum(),
        "l2": np.square(error).mean(axis=(1, 2, 3)).sum(),
        "kl": 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum() / (8 * 8 * 3),
    }
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        assert float(sums[name]) == pytest.approx(value, rel=1e-3), name
    factors = kl_coefficients(KLLossConfig(l1=2, l2=3, kl=5))
    total = (2 * expected["l1"] + 3 * expected["l2"] + 5 * expected["kl"]) / 4
    assert float(combine(factors, sums, weight)) == pytest.approx(total, rel=1e-3)


@functools.partial(jax.jit, static_argnums=(0, 4))
def vq_optional(graph, params, images, weight, optional, continuous=None):
    return vq_loss_sums(nnx.merge(graph, params), images, weight, optional, continuous)[0]


def test_detail_is_the_error_of_differences_between_neighbours(vq, kl, images):
    model = nnx.merge(*vq)
    error = np.asarray(model.decode(model.encode(images)[1]) - images, np.float64)
    down, across = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
    expected = (down**2).mean(axis=(1, 2, 3)) + (across**2).mean(axis=(1, 2, 3))
    weight = jnp.asarray([1.0, 1.0, 2.0, 0.0])
    found = vq_optional(*vq, images, weight, ("detail",))
    assert float(found["detail"]) == pytest.approx(float(expected @ np.asarray(weight)), rel=1e-3)
    assert "detail" not in vq_optional(*vq, images, weight, ())
    model = nnx.merge(*kl)
    assert "detail" in kl_loss_sums(model, images, weight, KEY, ("detail",))[0]
    assert vq_coefficients(VQLossConfig(detail=3, unused=2)).items() >= {"detail": 3, "unused": 2}.items()
    assert kl_coefficients(KLLossConfig(detail=3))["detail"] == 3
    # At 0 they are neither computed nor reported.
    assert vq_coefficients(VQLossConfig()).keys() == {"l1", "l2", "codebook", "commitment"}


def test_unused_codes_are_pulled_to_their_nearest_latent_and_nothing_else_is(vq, images):
    graph, params = vq
    weight = jnp.asarray([1.0, 1.0, 2.0, 0.0])
    model = nnx.merge(graph, params)
    unit, _, indices = model.quantize(model.pre_quantization(images))
    latents = np.asarray(unit, np.float64)[:3].reshape(-1, 8)
    table = np.asarray(model.codes(jnp.arange(16)[None])[0], np.float64)
    unused = [code for code in range(16) if code not in np.asarray(indices[:3])]
    assert 0 < len(unused) < 16
    nearest = latents[(table @ latents.T).argmax(axis=1)]
    expected = np.square(table - nearest).sum(axis=1)[unused].sum() / 16
    found = vq_optional(graph, params, images, weight, ("unused",))
    assert float(found["unused"]) == pytest.approx(4 * expected, rel=1e-3)
    grads = jax.grad(lambda params: vq_optional(graph, params, images, weight, ("unused",))["unused"])(params)
    moved = np.abs(np.asarray(grads["codebook"].get_value())).max(axis=1) > 0
    assert np.flatnonzero(moved).tolist() == unused
    assert all(not np.any(leaf) for part in ("encoder", "decoder") for leaf in jax.tree.leaves(grads[part]))


def test_continuous_images_are_decoded_from_their_latents(vq, images):
    model = nnx.merge(*vq)
    unit, latent, _ = model.quantize(model.pre_quantization(images))
    which = jnp.asarray([True, False, True, False])
    decoded = model.decode_latent(jnp.where(which[:, None, None, None], unit, latent))
    expected = float(jnp.sum(jnp.mean(jnp.square(decoded - images), axis=(1, 2, 3))))
    found = vq_optional(*vq, images, ONES, (), which)
    assert float(found["l2"]) == pytest.approx(expected, rel=1e-4)
    plain = vq_optional(*vq, images, ONES, ())
    assert abs(float(plain["l2"]) - expected) > 1e-4
    assert float(found["codebook"]) == pytest.approx(float(plain["codebook"]))


def test_an_image_without_weight_counts_for_nothing(vq, kl, images):
    changed = images.at[3].set(-images[3])
    weight = jnp.asarray([1.0, 1.0, 2.0, 0.0])
    first, second = (vq_sums(*vq, batch, weight)[0] for batch in (images, changed))
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-5)
    first, second = (kl_sums(*kl, batch, weight)[0] for batch in (images, changed))
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-5)
    nothing = vq_sums(*vq, images, jnp.zeros(4))
    assert combine(vq_coefficients(VQLossConfig()), nothing[0], nothing[1]) == 0


@pytest.fixture(scope="module")
def vq_gradients(vq, images):
    graph, params = vq

    @jax.jit
    def gradients(params):
        def losses(params):
            return vq_loss_sums(nnx.merge(graph, params), images, ONES)[0]

        return jax.jacrev(losses)(params)

    def size(state):
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(state))

    return {
        name: {part: size(state[part]) for part in ("encoder", "codebook", "decoder")}
        for name, state in gradients(params).items()
    }


@pytest.mark.parametrize(
    ("loss", "learning"),
    [("l2", {"encoder", "decoder"}), ("codebook", {"codebook"}), ("commitment", {"encoder"})],
)
def test_who_learns_from_which_loss(vq_gradients, loss, learning):
    assert {part for part, size in vq_gradients[loss].items() if size > 0} == learning


def test_codebook_use():
    indices = jnp.asarray([[0, 0, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]])
    counts = code_counts(indices[:1], jnp.ones(1), 8) + code_counts(indices[1:], jnp.asarray([1.0, 0.0]), 8)
    np.testing.assert_array_equal(counts, [2, 2, 4, 0, 0, 0, 0, 0])
    use = codebook_use(counts)
    assert float(use["perplexity"]) == pytest.approx(2**1.5)
    assert float(use["used"]) == pytest.approx(3 / 8)
    assert float(codebook_use(jnp.ones(8))["perplexity"]) == pytest.approx(8)
    assert float(codebook_use(jnp.zeros(8))["used"]) == 0


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_training_reconstructs(kind, images, request):
    graph, params = request.getfixturevalue(kind)
    optimizer = optax.adam(1e-2)

    def loss(params, key):
        model = nnx.merge(graph, params)
        if kind == "vq":
            sums, weight, _ = vq_loss_sums(model, images, ONES)
            return combine(vq_coefficients(VQLossConfig()), sums, weight), sums["l2"] / weight
        sums, weight = kl_loss_sums(model, images, ONES, key)
        return combine(kl_coefficients(KLLossConfig()), sums, weight), sums["l2"] / weight

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            grads, error = jax.grad(loss, has_aux=True)(params, key)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), error

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(KEY, 60))[1]

    errors = np.asarray(train(params))
    assert errors[-5:].mean() < 0.2 * errors[0]
