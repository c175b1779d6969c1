"""Programs for chips that are not here: each attention with each loss, lowered for TPU and CUDA."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import kinds
import pytest
from jax.sharding import AbstractDevice, AbstractMesh
from tiny_config import tiny_config

from unihetero_jax.model import products
from unihetero_jax.model.attention import base
from unihetero_jax.model.build import define
from unihetero_jax.train.unified import UnifiedLearner

SLOTS, ROWS, IMAGES, SIZE = 256, 2, 2, 32
CHIPS = [("tpu", "tpu", "xla"), ("tpu", "tpu", "splash"), ("gpu", "cuda", "xla"), ("gpu", "cuda", "triton")]
LOSSES = {"semantic and pixel": {}, "codes": kinds.CODES, "diffusion": kinds.LATENTS}


def batch() -> dict[str, Any]:
    """The shapes of a packed batch."""

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((ROWS, *shape), dtype)

    slots = {name: array(SLOTS) for name in ("tokens", "segment", "position", "image", "patch")}
    weights = {name: array(SLOTS, dtype=jnp.float32) for name in ("text_weight", "visual_weight")}
    role = array(IMAGES, dtype=jnp.int8)
    return {**slots, **weights, "role": role, "images": array(IMAGES, SIZE, SIZE, 3, dtype=jnp.uint8)}


def named(platform: str) -> contextlib.AbstractContextManager[Any]:
    """Name the GPU, which jax 0.12 asks for when it lowers a Triton kernel."""
    if platform != "gpu":
        return contextlib.nullcontext()
    chip = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=chip))


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize(("platform", "target", "attention"), CHIPS)
def test_every_loss_is_lowered_with_every_attention(monkeypatch, platform, target, attention, losses):
    for module in (base, products):
        monkeypatch.setattr(module, "platform", lambda mesh: platform)
    changes = {"data.seq_len": SLOTS, "model.decoder.attention": attention, "model.decoder.head_width": 128}
    changes |= {"model.decoder.dtype": "bfloat16"}
    config = tiny_config(**changes, **LOSSES[losses])
    learner = UnifiedLearner(config, define(config, 64))

    def gradient(params: Any, rows: Any) -> Any:
        def total(params: Any) -> jax.Array:
            sums, _ = learner.loss_sums(params, {}, rows, jax.random.key(0), None)
            return sum(sums.values())

        return jax.grad(total, allow_int=True)(params)

    allowed = [jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    export = jax.export.export(jax.jit(gradient), platforms=[target], disabled_checks=allowed)
    with named(platform):
        program = export(learner.model.shapes(), batch())
    assert program.platforms == (target,)
    text = program.mlir_module()
    kernel = {"splash": "tpu_custom_call", "triton": "__gpu$xla.gpu.triton"}.get(attention)
    assert kernel is None or kernel in text
