"""The published image autoencoders with their own parameters: ours give their numbers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from fixtures.procedural import outputs, state_dict

from unihetero_jax.towers.autoencoder_config import KL16, VQ16
from unihetero_jax.weights.autoencoders import from_state_dict


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def agree(found, expected, tolerance=1e-4):
    """Largest error against the largest value."""
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def vq_arrays():
    return state_dict("llamagen_vq16")


@pytest.fixture(scope="module")
def kl_arrays():
    return state_dict("mar_kl16")


@pytest.fixture(scope="module")
def vq(vq_arrays):
    return from_state_dict("vq16", vq_arrays)


@pytest.fixture(scope="module")
def kl(kl_arrays):
    return from_state_dict("kl16", kl_arrays)


def test_sizes_are_the_published_ones(vq, kl):
    assert vq.config == VQ16
    assert kl.config == KL16
    assert (vq.tokens, vq.width) == (256, 8)
    assert (kl.tokens, kl.width) == (256, 16)


def test_vq16_is_llamagen_s(vq):
    reference = outputs("llamagen_vq16")
    continuous = jax.jit(vq.pre_quantization)(channels_last(reference["image"]))
    agree(continuous, channels_last(reference["pre_quantization"]))
    quantized = vq.quantize(continuous)
    table = np.asarray(vq.codebook[...], np.float64)
    table /= np.linalg.norm(table, axis=-1, keepdims=True)
    normed = channels_last(reference["pre_quantization"]).reshape(256, 8).astype(np.float64)
    normed /= np.linalg.norm(normed, axis=-1, keepdims=True)
    found, theirs = np.asarray(quantized.indices)[0], reference["indices"]
    gap = np.sum(normed * table[theirs], axis=-1) - np.sum(normed * table[found], axis=-1)
    assert (np.abs(gap[found != theirs]) < 1e-5).all(), "only ties may differ"
    assert (found == theirs).mean() > 0.98
    same = (found == theirs).reshape(16, 16)
    agree(np.asarray(quantized.latent)[0][same], channels_last(reference["latent"])[0][same])
    agree(jax.jit(vq.decode)(theirs[None]), channels_last(reference["decoded"]))


def test_kl16_is_mar_s(kl):
    reference = outputs("mar_kl16")
    mean, logvar = jax.jit(kl.posterior)(channels_last(reference["image"]))
    agree(mean, channels_last(reference["mean"]))
    agree(logvar, channels_last(reference["logvar"]))
    agree(jax.jit(kl.decode)(channels_last(reference["mean"])), channels_last(reference["decoded"]))
