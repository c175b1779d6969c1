"""Attention's implementations: what each gives for packed rows, and which is chosen where."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unihetero_jax.config import DecoderConfig, MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.model.attention.base import Packed, attention, choose, refused
from unihetero_jax.model.attention.splash import SplashAttention
from unihetero_jax.model.decoder import Decoder
from unihetero_jax.parallel.mesh import make_mesh

SLOTS, HEADS, WIDTH = 256, 4, 32
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def segments(rows: int, seed: int = 0) -> jax.Array:
    """Rows of six samples of any length; the first ends with padding."""
    chance = np.random.default_rng(seed)
    cuts = [np.sort(chance.choice(np.arange(1, SLOTS), 5, replace=False)) for _ in range(rows)]
    segment = np.stack([np.searchsorted(cut, np.arange(SLOTS), side="right") + 1 for cut in cuts]).astype(np.int32)
    segment[0, -30:] = 0
    return jnp.asarray(segment)


def heads(rows: int, groups: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    return [
        jax.random.normal(key, (rows, SLOTS, count, WIDTH))
        for key, count in zip(keys, (HEADS, groups, groups), strict=True)
    ]


@functools.cache
def outcome(implementation: str, groups: int, **axes: int) -> Any:
    """What an implementation gives, and the gradients of a function of it."""
    size = int(np.prod(list(axes.values()) or [1]))
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[:size]) if axes else None
    segment = segments(4)

    def mixed(*arrays: jax.Array) -> jax.Array:
        return attention(*arrays, Packed(segment), implementation, mesh)

    def both(*arrays: jax.Array) -> Any:
        return mixed(*arrays), jax.grad(lambda *arrays: jnp.sum(jnp.sin(mixed(*arrays))), (0, 1, 2))(*arrays)

    return jax.tree.map(np.asarray, jax.jit(both)(*heads(4, groups)))


@pytest.mark.parametrize("implementation", ["xla", "splash", "triton", "cpu"])
@pytest.mark.parametrize("groups", [4, 2])
def test_each_implementation_gives_the_formula_and_its_gradient(implementation, groups):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **TOLERANCE),
        outcome(implementation, groups),
        outcome("reference", groups),
    )


@pytest.mark.parametrize(
    ("implementation", "axes"),
    [
        ("splash", {"fsdp": 2, "tensor": 2}),
        ("splash", {"slice": 2, "fsdp": 1, "context": 2, "tensor": 2}),
        ("triton", {"slice": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_a_kernel_on_parts_gives_the_whole(implementation, axes):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **TOLERANCE),
        outcome(implementation, 2, **axes),
        outcome("reference", 2),
    )


def test_a_decoder_with_a_kernel_is_the_one_without(monkeypatch):
    config = DecoderConfig(width=32, layers=2, heads=4, kv_heads=2, mlp_width=48, dtype="float32", remat="dots")
    decoder = Decoder(config, 100, rngs=nnx.Rngs(0))
    graph, state = nnx.split(decoder)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 100, (2, SLOTS)))
    position = jnp.broadcast_to(jnp.arange(SLOTS), (2, SLOTS))
    calls = []
    splash = SplashAttention.__call__
    monkeypatch.setattr(SplashAttention, "__call__", lambda *given: calls.append(given) or splash(*given))

    def gradient(name):
        @jax.jit
        @jax.grad
        def run(state):
            decoder = nnx.merge(graph, state)
            decoder.config = dataclasses.replace(config, attention=name)
            decoder.layers.config = decoder.config
            return jnp.sum(jnp.sin(decoder(decoder.embed(tokens), position, Packed(segments(2)))[0]))

        return run(state)

    kernel = gradient("splash")
    assert calls
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), kernel, gradient("reference"))


def devices(platform: str, context: int = 1) -> Any:
    """As much of a mesh of absent devices as the choice looks at."""
    return SimpleNamespace(
        devices=np.array([SimpleNamespace(platform=platform)]), shape={"context": context, "tensor": 1}
    )


@pytest.mark.parametrize(
    ("platform", "context", "slots", "width", "dtype", "expected"),
    [
        ("cpu", 1, 4096, 128, "bfloat16", "cpu"),
        ("cpu", 2, 4096, 128, "bfloat16", "xla"),
        ("tpu", 1, 4096, 128, "bfloat16", "splash"),
        ("tpu", 4, 4096, 64, "float32", "splash"),
        ("tpu", 1, 120, 128, "bfloat16", "xla"),
        ("tpu", 4, 256, 128, "bfloat16", "xla"),
        ("gpu", 1, 4096, 128, "bfloat16", "cudnn"),
        ("cuda", 1, 4096, 64, "float16", "cudnn"),
        ("gpu", 1, 4096, 128, "float32", "xla"),
        ("gpu", 1, 4096, 256, "bfloat16", "xla"),
        ("gpu", 1, 100, 128, "bfloat16", "xla"),
        ("gpu", 2, 4096, 128, "bfloat16", "xla"),
    ],
)
def test_auto_takes_what_the_devices_have(platform, context, slots, width, dtype, expected):
    assert choose("auto", devices(platform, context), slots, width, dtype) == expected


def test_what_cannot_be_had_is_said_and_replaced():
    mesh = devices("tpu")
    assert "multiple of 128 slots" in refused("splash", mesh, 100, 128, "bfloat16")
    assert choose("splash", mesh, 100, 128, "bfloat16") == "xla"
    assert "does not split a sequence" in refused("triton", devices("gpu", 2), 4096, 128, "bfloat16")
    assert "16-bit" in refused("cudnn", devices("gpu"), 4096, 128, "float32")
    assert not refused("splash", mesh, 256, 128, "bfloat16")


def test_an_unknown_attention_is_an_error():
    with pytest.raises(UsageError, match="attention='flash': expected one of 'auto', 'cpu', 'cudnn', 'reference'"):
        attention(*heads(4, 4), Packed(segments(4)), "flash")
