"""The published image autoencoders with their own parameters: ours give their numbers."""

from __future__ import annotations

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import relative_error
from fixtures.procedural import REFERENCE, outputs, state_dict, weight
from flax import nnx

from unihetero_jax.config import MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.towers.common.autoencoder.config import KL16, VQ16
from unihetero_jax.weights import from_state_dict
from unihetero_jax.weights.tensors import TensorFiles
from unihetero_jax.weights.writer import Tensor, write_folder


def channels_last(x):
    return np.moveaxis(x, 1, -1)


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
    assert relative_error(continuous, channels_last(reference["pre_quantization"])) <= 1e-4
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
    assert relative_error(np.asarray(quantized.latent)[0][same], channels_last(reference["latent"])[0][same]) <= 1e-4
    assert relative_error(jax.jit(vq.decode)(theirs[None]), channels_last(reference["decoded"])) <= 1e-4


def test_kl16_is_mar_s(kl):
    reference = outputs("mar_kl16")
    mean, logvar = jax.jit(kl.posterior)(channels_last(reference["image"]))
    assert relative_error(mean, channels_last(reference["mean"])) <= 1e-4
    assert relative_error(logvar, channels_last(reference["logvar"])) <= 1e-4


@pytest.mark.slow
def test_kl16_decodes_as_mar_s(kl):
    reference = outputs("mar_kl16")
    decoded = jax.jit(kl.decode)(channels_last(reference["mean"]))
    assert relative_error(decoded, channels_last(reference["decoded"])) <= 1e-4


KINDS = {"vq16": "llamagen_vq16", "kl16": "mar_kl16"}


@functools.cache
def smaller(kind):
    """The published names of the largest and the smallest grid alone, every layer 16 channels wide."""
    shapes = json.loads((REFERENCE / f"{KINDS[kind]}.manifest.json").read_text())
    arrays = {}
    for name, shape in shapes.items():
        if not re.search(r"(conv_blocks|down|up)\.[123]\.|nin_shortcut", name):
            name = re.sub(r"(conv_blocks|down|up)\.4", r"\1.1", name)
            arrays[name] = weight(name, [64 if n == 16_384 else 16 if n >= 64 else n for n in shape])
    return arrays


def load(kind, arrays, **settings):
    return from_state_dict(kind, arrays, **{"image_size": 8, "groups": 8, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_other_sizes_are_read_off_the_shapes_and_every_array_is_used(kind):
    arrays = smaller(kind)
    model = load(kind, arrays)
    assert (model.config.channels, model.config.multipliers, model.config.blocks) == (16, (1, 1), 2)
    assert (model.config.encoder_attention, model.config.decoder_attention) == ((1,), (1,) if kind == "vq16" else ())
    assert model.tokens == 16
    found = sorted(float(np.sum(leaf)) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(found, sorted(float(array.sum()) for array in arrays.values()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_prefixes_and_parts_of_a_training_run(kind, caplog):
    arrays = smaller(kind)
    first = "encoder.conv_in.weight"
    file = {f"model.module.{name}": array + 1 for name, array in arrays.items()}
    file |= {f"ema.{name}": array for name, array in arrays.items()}
    beside = {"model.loss.discriminator.main.0.weight": np.zeros(3), "ema.quantize.codebook_used": np.zeros(65536)}
    with caplog.at_level("INFO", logger="unihetero_jax"):
        model = load(kind, file | beside)
    kernel = np.asarray(model.encoder.conv_in.kernel[...])
    np.testing.assert_array_equal(kernel, arrays[first].transpose(2, 3, 1, 0))
    for name in (*beside, f"model.module.{first}"):
        assert name in caplog.text
    assert f"ema.{first}" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_differences_are_listed_by_name(kind):
    arrays = smaller(kind)
    missing, unknown = "decoder.norm_out.bias", "decoder.norm_out.extra"
    cut = {name: array for name, array in arrays.items() if name != missing}
    with pytest.raises(
        UsageError, match=rf"{kind}: 1 .* missing: {missing}; 1 .* no place in the model: m\.{unknown}$"
    ):
        load(kind, {f"m.{name}": array for name, array in (cut | {unknown: np.zeros(1)}).items()})
    shapes = r"decoder\.conv_in\.weight .* has shape \[3, 16, 3, 3\], expected \[16, 16, 3, 3\]"
    with pytest.raises(UsageError, match=shapes):
        load(kind, arrays | {"decoder.conv_in.weight": np.zeros((3, 16, 3, 3))})
    with pytest.raises(UsageError, match=r"no encoder\.conv_in\.weight .* found head\.weight"):
        load(kind, {"head.weight": np.zeros(3)})
    other = next(other for other in KINDS if other != kind)
    with pytest.raises(UsageError, match=f"{kind}: missing encoder.*these look like '{other}'"):
        load(kind, smaller(other))
    with pytest.raises(UsageError, match=r"unknown kind of weights 'vq1': expected one of .*; did you mean 'vq16'"):
        load("vq1", arrays)
    with pytest.raises(UsageError, match="dtype='float33': expected one of float32, bfloat16; did you mean 'float32'"):
        load(kind, arrays, dtype="float33")


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_tensor_by_tensor_and_land_sharded(kind, tmp_path):
    arrays, reads = smaller(kind), []
    tensors = [Tensor(name, array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()]
    write_folder(tmp_path / "made", tensors, {}, shard_bytes=50_000)

    class Watched(TensorFiles):
        def read(self, name):
            reads.append(name)
            return super().read(name)

    with Watched(tmp_path / "made") as files:
        model = load(kind, files, mesh=make_mesh(MeshConfig(fsdp=8)))
        assert reads == list(files.names), "each once, in the order of the files"
    kernel = model.encoder.levels[0].blocks[0].conv1.kernel[...]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    expected = nnx.to_pure_dict(nnx.state(load(kind, arrays), nnx.Param))
    found = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind):
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)), jnp.float32)
    made = []
    for dtype in ("float32", "bfloat16"):
        model = load(kind, smaller(kind), dtype=dtype)
        made_of = jax.jit(model.pre_quantization if kind == "vq16" else model.posterior)(image)
        latent = made_of if kind == "vq16" else made_of[0]
        assert latent.dtype == jnp.float32
        made.append(np.asarray(latent))
    error = np.abs(made[0] - made[1]).max()
    assert 1e-4 < error < 0.1 * np.abs(made[0]).max()
