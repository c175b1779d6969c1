"""Muon: which parameters are matrices, what their updates look like, and where its state lives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest

from unihetero_jax.config import MeshConfig
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.train.optimizers.base import make_optimizer
from unihetero_jax.train.optimizers.muon import MuonConfig, matrix_axes, muon
from unihetero_jax.train.state import state_shardings
from unihetero_jax.train.unified import UnifiedLearner

CONFIG = packed.configure(**{"optimizer.kind": "muon"})


@pytest.mark.parametrize(
    ("path", "ndim", "axes"),
    [
        (("decoder", "layers", "query", "kernel"), 4, ((1,), (2, 3))),
        (("decoder", "layers", "output", "kernel"), 4, ((1, 2), (3,))),
        (("decoder", "layers", "down", "kernel"), 3, ((1,), (2,))),
        (("semantic_head", "output", "kernel"), 2, ((0,), (1,))),
        (("pixel_tower", "convolution", "kernel"), 4, ((0, 1, 2), (3,))),
        (("decoder", "layers", "query", "bias"), 3, None),
        (("decoder", "embedding"), 2, None),
        (("understanding_adapter", "positions"), 2, None),
    ],
)
def test_kernels_are_matrices_and_tables_are_not(path, ndim, axes):
    assert matrix_axes(path, ndim) == axes


def test_an_update_of_each_matrix_turns_all_directions_alike():
    draw = np.random.default_rng(0)
    # Gradients of quickly falling singular values: AdamW's update would follow the first.
    falling = draw.normal(size=(2, 16, 6)) * 2.0 ** -np.arange(6)
    params = {
        "decoder": {"layers": {"query": {"kernel": jnp.asarray(falling.reshape(2, 16, 2, 3), jnp.float32)}}},
        "text_head": {"output": {"bias": jnp.asarray([3.0, -0.01])}},
    }
    rule = muon(MuonConfig(iterations=10))
    update, _ = rule.update(params, rule.init(params), params)
    for layer, gradient in zip(update["decoder"]["layers"]["query"]["kernel"], falling, strict=True):
        values = np.linalg.svd(np.reshape(layer, (16, 6)), compute_uv=False)
        assert values.max() / values.min() < 2, "orthogonal up to Newton–Schulz"
        assert np.sqrt(np.mean(np.square(layer))) == pytest.approx(0.2, rel=0.25)
        assert np.sum(np.reshape(layer, (16, 6)) * gradient) > 0, "a direction of ascent"
    bias = np.asarray(update["text_head"]["output"]["bias"])
    assert bias[0] == pytest.approx(-bias[1], rel=1e-3), "what is no matrix moves as with Adam"
    assert bias[0] > 0


def test_the_state_is_sharded_as_its_parameters():
    learner, mesh = UnifiedLearner(CONFIG, define(CONFIG, packed.VOCABULARY)), make_mesh(MeshConfig(1, 4, 1, 2))
    optimizer = make_optimizer(CONFIG.optimizer, CONFIG.train.steps)
    shapes, places = state_shardings(learner, optimizer, mesh)
    found = {
        jax.tree_util.keystr(keys): place for keys, place in jax.tree_util.tree_leaves_with_path(places["opt_state"])
    }
    kernel = places["params"]["decoder"]["layers"]["down"]["kernel"]
    assert kernel.spec != jax.sharding.PartitionSpec()
    moments = [place for name, place in found.items() if name.endswith("['layers']['down']['kernel']")]
    assert moments == [kernel], "one moment, of Muon"
    tables = [place for name, place in found.items() if name.endswith("['decoder']['embedding']")]
    assert len(tables) == 2, "two moments, of AdamW"
    assert jax.tree.structure(shapes["opt_state"]) == jax.tree.structure(places["opt_state"])
