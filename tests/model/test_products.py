"""Linear maps on one CPU device: what the portable path computes, and its gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unihetero_jax.config import DecoderConfig, MeshConfig
from unihetero_jax.model import decoder as decoder_module
from unihetero_jax.model.attention.base import Packed
from unihetero_jax.model.build import define_language_model
from unihetero_jax.model.products import linears, on_one_cpu, swiglu
from unihetero_jax.parallel.mesh import make_mesh

ONE, TWO = (make_mesh(MeshConfig(), jax.devices()[:count]) for count in (1, 2))
WIDTH, HEADS, HIDDEN = 16, (2, 12), 40


def modules(dtype: Any) -> dict[str, Any]:
    rngs = nnx.Rngs(0)
    return {
        "query": nnx.LinearGeneral(WIDTH, HEADS, dtype=dtype, bias_init=nnx.initializers.normal(1.0), rngs=rngs),
        "key": nnx.LinearGeneral(WIDTH, (1, 12), use_bias=False, dtype=dtype, rngs=rngs),
        "output": nnx.LinearGeneral(HEADS, WIDTH, axis=(-2, -1), use_bias=False, dtype=dtype, rngs=rngs),
        "gate": nnx.Linear(WIDTH, HIDDEN, use_bias=False, dtype=dtype, rngs=rngs),
        "up": nnx.Linear(WIDTH, HIDDEN, use_bias=False, dtype=dtype, rngs=rngs),
        "down": nnx.Linear(HIDDEN, WIDTH, use_bias=False, dtype=dtype, rngs=rngs),
    }


def outcome(dtype: Any, mesh: Any) -> Any:
    """Outputs of all maps, and the gradients of a function of them to parameters and input."""
    graph, state = nnx.split(nnx.Dict(modules(dtype)))
    x = jax.random.normal(jax.random.key(1), (3, 7, WIDTH)).astype(dtype)

    @jax.jit
    def both(state: Any, x: jax.Array) -> Any:
        def some(state: Any, x: jax.Array) -> Any:
            made = nnx.merge(graph, state)
            query, key = linears((made["query"], made["key"]), x, mesh)
            (mixed,) = linears((made["output"],), query * key, mesh)
            gated = swiglu(made["gate"], made["up"], made["down"], x, mesh)
            total = sum(jnp.sum(jnp.sin(part.astype(jnp.float32))) for part in (query, mixed, gated))
            return total, (query, key, mixed, gated)

        (_, parts), grads = jax.value_and_grad(some, (0, 1), has_aux=True)(state, x)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (parts, grads))

    return jax.tree.map(np.asarray, jax.tree.leaves(both(state, x)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 5e-2)])
def test_one_cpu_computes_what_the_portable_path_does(dtype, tolerance):
    assert on_one_cpu(ONE)
    assert not on_one_cpu(TWO)
    for own, portable in zip(outcome(dtype, ONE), outcome(dtype, TWO), strict=True):
        np.testing.assert_allclose(own, portable, rtol=tolerance, atol=tolerance * np.abs(portable).max())


def test_what_is_called_like_a_linear_is_called():
    x = jnp.ones((2, 3))
    doubled, halved = linears((lambda x: 2 * x, lambda x: x / 2), x, ONE)
    np.testing.assert_array_equal(doubled, 4 * halved)


def test_layers_one_by_one_are_those_of_the_scan(monkeypatch):
    config = DecoderConfig(width=16, layers=3, heads=2, kv_heads=1, mlp_width=24, dtype="float32", attention="xla")
    model = define_language_model(config, 32)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 10), 0, 32)

    def gradient() -> Any:
        def some(params: Any) -> jax.Array:
            made = model.bind(params).decoder
            hidden, _ = made(made.embed(tokens), jnp.arange(10)[None], Packed(jnp.ones_like(tokens)), mesh=ONE)
            return jnp.sum(jnp.sin(hidden))

        found = jax.jit(jax.grad(some))
        return found(params), len(found.lower(params).as_text().splitlines())

    unrolled, long = gradient()
    monkeypatch.setattr(decoder_module, "_UNROLLED", 0)
    scanned, short = gradient()
    assert long > short
    for left, right in zip(*map(jax.tree.leaves, (unrolled, scanned)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
