"""What an import needs besides the parameters that it makes."""

from __future__ import annotations

import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest

from unihetero_jax.config import DecoderConfig, MeshConfig
from unihetero_jax.model.build import define_language_model
from unihetero_jax.model.families.base import DecoderFamily, renaming
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.weights.fill import Arrays, fill
from unihetero_jax.weights.layouts import MoreEntries, slots
from unihetero_jax.weights.tensors import TensorFiles
from unihetero_jax.weights.writer import Tensor, write_folder

BF16 = np.dtype(ml_dtypes.bfloat16)


def test_an_import_holds_less_than_two_shards_besides_the_parameters(tmp_path):
    config = DecoderConfig(width=512, layers=8, heads=8, kv_heads=8, mlp_width=1792, tie_embeddings=False)
    definition = define_language_model(config, 1024)
    shapes = definition.shapes()["decoder"]
    places = slots(DecoderFamily.rules(config), shapes)
    tensors = []
    for number, (name, slot) in enumerate(places.items()):
        shape = slot.rule.layout.shape(slot.shape)
        full = name if name == "lm_head.weight" else f"model.{name}"
        tensors.append(Tensor(full, shape, BF16, lambda shape=shape, number=number: np.full(shape, number, BF16)))
    write_folder(tmp_path / "x", tensors, {}, shard_bytes=8_000_000)
    sizes = [file.stat().st_size for file in (tmp_path / "x").glob("*.safetensors")]
    assert sum(sizes) > 60e6
    arrays = Arrays(shapes, definition.shardings(make_mesh(MeshConfig()))["decoder"], BF16)
    tracemalloc.start()
    try:
        with TensorFiles(tmp_path / "x") as files:
            fill(files, places, renaming(files, tied=False), arrays)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # JAX's own buffers are not traced: what is, are the copies on the way.
    assert peak < 2 * max(sizes)
    assert peak > 1e6, "the copies are traced"
    kernels = arrays.tree()["layers"]["gate"]["kernel"]
    expected = [number for number, tensor in enumerate(tensors) if tensor.name.endswith("gate_proj.weight")]
    np.testing.assert_array_equal(np.asarray(kernels[:, 0, 0], np.float32), np.asarray(expected, BF16))


def test_a_stack_is_filled_in_place():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    definition = define_language_model(DecoderConfig(width=64, layers=4, heads=4, kv_heads=4, mlp_width=64), 128)
    arrays = Arrays(definition.shapes(), definition.shardings(mesh), np.float32)
    path = ("decoder", "layers", "gate", "kernel")
    addresses = set()
    for layer in range(4):
        arrays.put(path, layer, np.full((64, 64), layer, np.float32))
        addresses.add(arrays.tree()["decoder"]["layers"]["gate"]["kernel"].unsafe_buffer_pointer())
    assert len(addresses) == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_more_entries_are_the_mean_in_every_slice(axis):
    array = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)
    more = MoreEntries(array, axis, 9)
    mean = np.broadcast_to(array.mean(axis, keepdims=True), (4, 5) if axis == 0 else (5, 4))
    whole = np.concatenate([array, mean], axis)
    assert more.shape == whole.shape
    for parts in (
        (slice(None),) * 2,
        (slice(0, 3), slice(1, 4)),
        (slice(2, 5), slice(3, 5)),
        (slice(4, 5), slice(4, 5)),
    ):
        np.testing.assert_allclose(more[parts], whole[parts], rtol=1e-5, atol=1e-6)
    for start in range(0, 9, 3):
        index = [slice(None), slice(None)]
        index[axis] = slice(start, start + 3)
        np.testing.assert_allclose(more[tuple(index)], whole[tuple(index)], rtol=1e-5, atol=1e-6)
