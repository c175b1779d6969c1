"""The autoencoders' losses: the formulas, who learns from which, how batches add up, and that training reconstructs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from unihetero_jax.towers.autoencoder_config import KLConfig, KLLossConfig, VQConfig, VQLossConfig
from unihetero_jax.towers.autoencoder_losses import (
    code_counts,
    codebook_use,
    combine,
    kl_coefficients,
    kl_loss_sums,
    vq_coefficients,
    vq_loss_sums,
)
from unihetero_jax.towers.kl16 import KL16
from unihetero_jax.towers.vq16 import VQ16

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
