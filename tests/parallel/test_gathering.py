from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unihetero_jax.config import MeshConfig
from unihetero_jax.config import loading as config_file
from unihetero_jax.parallel import gathering
from unihetero_jax.parallel import hlo as program
from unihetero_jax.parallel.gathering import gathered
from unihetero_jax.parallel.mesh import make_mesh, sharding
from unihetero_jax.plan.lowering import lower

import runs  # isort: skip

AXES = ("embed", "mlp")
VOCABULARY = 384


@pytest.fixture(autouse=True, scope="module")
def _as_on_accelerators():
    """These programs are compiled, or small enough to run: on CPU, gathering is left to the compiler otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "_UNCONSTRAINED", ())
        yield


def _mesh(**sizes):
    return make_mesh(MeshConfig(**sizes), jax.devices())


def test_a_weight_travels_in_the_type_of_the_products_and_its_gradient_comes_back_split():
    mesh = _mesh(fsdp=4, tensor=2)
    split = sharding(mesh, *AXES)
    weight = jax.device_put(np.arange(64 * 16, dtype=np.float32).reshape(64, 16), split)
    rows = jax.device_put(np.ones((8, 64), np.float32), sharding(mesh, "batch", None))

    def loss(weight, rows):
        whole = gathered(weight, AXES, mesh, "bfloat16")
        return jnp.sum((rows.astype(whole.dtype) @ whole).astype(jnp.float32))

    compiled = jax.jit(jax.grad(loss)).lower(weight, rows).compile()
    gradient = compiled(weight, rows)
    assert gradient.sharding.is_equivalent_to(split, 2)
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, np.full((64, 16), 8.0))
    traffic = program.collectives(program.parse(compiled.as_text()), mesh.shape)
    # CPUs have no products of bfloat16, and the compiler may widen before the gather; nothing travels along `tensor`.
    assert {entry.axis for entry in traffic if entry.kind == "all-gather"} <= {"fsdp"}


def test_where_nothing_is_split_a_weight_is_only_cast():
    weight = jnp.ones((64, 16))
    assert gathered(weight, AXES, None, "bfloat16").dtype == jnp.bfloat16
    text = jax.jit(lambda x: gathered(x, AXES, _mesh(fsdp=1, tensor=8))).lower(weight).as_text()
    assert "sharding_constraint" not in text


def _step(*overrides):
    """The tiny experiment's step on eight devices: its traffic, and its text."""
    texts = ("train.batch_size=16", "losses.semantic.weight=0", "losses.pixel.weight=0", *overrides)
    config = config_file.load(runs.TINY, [tuple(text.split("=", 1)) for text in texts])
    config = dataclasses.replace(config, mesh=MeshConfig())
    mesh = make_mesh(config.mesh)
    text = lower(config, VOCABULARY, mesh)[0].compile().as_text()
    return config, program.collectives(program.parse(text), mesh.shape), text


def test_what_is_kept_for_the_backward_pass_are_activations_and_never_whole_weights():
    config, _, text = _step("model.decoder.layers=3")
    decoder = config.model.decoder
    assert decoder.remat == "none"
    assert f"[3,{decoder.width // 8},{decoder.mlp_width}]" in text
    assert f"[3,{decoder.width},{decoder.mlp_width}]" not in text


def test_chunks_of_the_text_head_add_up_their_gradients_before_they_are_sent():
    bytes_by_chunk = {}
    for chunk in (0, 16):
        _, traffic, _ = _step(f"losses.text.chunk={chunk}", "model.decoder.tie_embeddings=false")
        bytes_by_chunk[chunk] = sum(entry.bytes for entry in traffic)
    assert bytes_by_chunk[16] < 1.1 * bytes_by_chunk[0]
