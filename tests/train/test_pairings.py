"""A training step of every kind of tower and objective is the same on one device and on eight."""

import jax
import numpy as np
import pytest
from packed import DESCENT, VOCABULARY
from pairings import configure, two_images

from unihetero_jax.config import MeshConfig
from unihetero_jax.model.build import define
from unihetero_jax.parallel.mesh import make_mesh, place, sharding
from unihetero_jax.parallel.processes import place_rows
from unihetero_jax.train.state import initial_state, state_shardings
from unihetero_jax.train.step import compile_step, make_step
from unihetero_jax.train.unified import UnifiedLearner


def one_step(config, split):
    """(parameters before, parameters after, metrics) of a step of plain descent, as NumPy."""
    mesh = make_mesh(MeshConfig(*split), jax.devices()[: int(np.prod(split))])
    learner = UnifiedLearner(config, define(config, VOCABULARY))
    shapes = jax.eval_shape(lambda: initial_state(learner, DESCENT))
    _, places = state_shardings(learner, DESCENT, mesh)
    chance = np.random.default_rng(0)

    def draw(path, leaf):
        if "rng" in str(path[0]):
            return np.asarray(jax.random.key_data(jax.random.key(5)))
        ones = float("scale" in jax.tree_util.keystr(path))
        return (
            (ones + chance.normal(0.0, 0.1, leaf.shape)).astype(leaf.dtype) if leaf.ndim else np.zeros((), leaf.dtype)
        )

    before = jax.tree.map_with_path(draw, shapes)
    rows, where = list(range(config.train.batch_size)), sharding(mesh, "batch")
    batch = {name: place_rows(array, rows, len(rows), where) for name, array in two_images(config).items()}
    state = jax.tree.map(place, before, places)
    step = compile_step(make_step(learner, DESCENT, mesh), places, mesh)
    after, metrics = step(state, batch)
    return before["params"], *jax.tree.map(np.asarray, (after["params"], metrics))


@pytest.mark.parametrize("name", ["siglip_vq", "unihetero", "latents", "dit"])
def test_eight_devices_compute_what_one_does(name):
    config = configure(name)
    before, alone, expected = one_step(config, (1, 1, 1, 1))
    _, split, found = one_step(config, (1, 2, 2, 2))
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, rel=2e-5, abs=1e-6), metric
    for (path, left), right, start in zip(
        jax.tree.leaves_with_path(alone), jax.tree.leaves(split), jax.tree.leaves(before), strict=True
    ):
        moved = np.abs(left - start).max()
        np.testing.assert_allclose(right, left, rtol=0, atol=1e-4 * moved + 1e-7, err_msg=jax.tree_util.keystr(path))
    frozen = {
        "siglip_vq": {"understanding_tower", "generation_tower"},
        "unihetero": {"understanding_tower", "pixel_tower"},
    }
    for part in frozen.get(name, ()):
        assert all(map(np.array_equal, jax.tree.leaves(alone[part]), jax.tree.leaves(before[part])))
