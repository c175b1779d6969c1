"""Towers as the model sees them: raw images in, features out, and only where they are needed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from unihetero_jax.config import MeshConfig
from unihetero_jax.parallel.mesh import RULES, check_sharded, make_mesh, sharding
from unihetero_jax.towers.base import Tower, run_where
from unihetero_jax.towers.clip.config import CLIPConfig
from unihetero_jax.towers.common.vit.preprocess import prepare
from unihetero_jax.towers.common.vit.weights import make_vit
from unihetero_jax.towers.dinov2.config import DINOv2Config

SIZES = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 32, "patch_size": 8, "image_size": 24, "shortest_edge": 24}
CLIP = CLIPConfig(**SIZES, layer=-2)


@nnx.jit
def see(tower, images):
    return tower(images)


@nnx.jit(static_argnames="layer")
def hidden_states(tower, images, layer=-1):
    return tower.hidden_states(prepare(images, tower.config), layer)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 3, 16, 20, 3), dtype=np.uint8))


def test_features_are_the_patches_hidden_states(images):
    tower = make_vit(CLIP, nnx.Rngs(0))
    assert isinstance(tower, Tower)
    features = see(tower, images)
    assert features.shape == (4, 3, tower.tokens, tower.width) == (4, 3, 9, 16)
    assert features.dtype == jnp.float32
    hidden = hidden_states(tower, images[2], -2)
    np.testing.assert_allclose(features[2], hidden[:, 1:], atol=1e-5)
    kept = make_vit(dataclasses.replace(CLIP, class_token=True), nnx.Rngs(0))
    assert kept.tokens == 10
    np.testing.assert_allclose(see(kept, images)[2], hidden, atol=1e-5)


def test_registers_are_not_features(images):
    config = DINOv2Config(**SIZES, registers=4)
    tower = make_vit(config, nnx.Rngs(0))
    hidden = hidden_states(tower, images[0])
    np.testing.assert_allclose(see(tower, images)[0], hidden[:, 5:], atol=1e-5)


def test_gradients_reach_every_parameter_that_the_layer_uses(images):
    config = DINOv2Config(**SIZES, registers=2, swiglu=True, input_size=16)
    graph, params = nnx.split(make_vit(config, nnx.Rngs(0)))
    weight = jax.random.normal(jax.random.key(0), (16,))
    grads = jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(images[:1]) @ weight)))(params)
    for path, leaf in jax.tree.leaves_with_path(grads):
        # A bias on all keys alike does not change attention.
        if "'key'" not in jax.tree_util.keystr(path) or leaf.ndim > 3:
            assert np.abs(np.asarray(leaf)).max() > 0, path


def test_a_large_tower_is_sharded():
    config = dataclasses.replace(CLIP, width=256, heads=4, mlp_width=1024)
    mesh = make_mesh(MeshConfig(slice=1, fsdp=4, context=1, tensor=2))
    state = nnx.eval_shape(lambda: nnx.state(make_vit(config, nnx.Rngs(0)), nnx.Param))

    def where(variable):
        shape, axes = variable.get_value().shape, variable.get_metadata()["axes"]
        return variable.replace(
            NamedSharding(mesh, RULES.spec(("layers", *axes) if len(axes) < len(shape) else axes, shape, mesh))
        )

    places = jax.tree.map(where, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    assert check_sharded(nnx.to_pure_dict(state), nnx.to_pure_dict(places)) <= 0.02


def test_gradients_are_those_of_the_needed_images_recomputed_or_kept(images):
    needed = jnp.asarray(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]], bool))
    weight = jax.random.normal(jax.random.key(0), (16,))

    def gradients(config, run):
        graph, params = nnx.split(make_vit(config, nnx.Rngs(0)))
        loss = jax.grad(lambda p: jnp.sum(run(nnx.merge(graph, p)) @ weight))
        return "remat" in str(jax.make_jaxpr(loss)(params)), jax.jit(loss)(params)

    kept, expected = gradients(CLIP, lambda tower: tower(images) * needed[:, :, None, None])
    recomputed, got = gradients(
        dataclasses.replace(CLIP, remat="full"), lambda tower: run_where(tower, (9, 16), images, needed, capacity=4)
    )
    assert (kept, recomputed) == (False, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


class Counting:
    """Doubles each image's first pixel, and writes down the images of each run."""

    def __init__(self):
        self.runs = []

    def __call__(self, images_BKHWC):
        count = images_BKHWC.shape[0] * images_BKHWC.shape[1]
        jax.debug.callback(lambda: self.runs.append(count))
        return 2.0 * images_BKHWC[:, :, 0, :1].astype(jnp.float32)


def ran(tower, images, needed, **options):
    features = jax.jit(lambda i, n: run_where(tower, (1, 3), i, n, **options))(images, jnp.asarray(needed))
    jax.effects_barrier()
    return np.asarray(features)


@pytest.mark.parametrize(
    ("needed", "options", "images_seen"),
    [
        ([[0, 0, 0]] * 4, {}, []),
        ([[0, 0, 0]] * 4, {"capacity": 4}, []),
        ([[0, 1, 0]] + [[0, 0, 0]] * 3, {}, [12]),
        ([[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]], {"capacity": 4}, [4]),
        ([[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]], {"capacity": 3}, [3]),
        ([[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]], {"capacity": 2}, [12]),
        ([[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]], {"capacity": 3, "groups": 2}, [4]),
        ([[0, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]], {"capacity": 3, "groups": 2}, [12]),
        ([[1, 1, 1]] * 4, {"capacity": 4}, [12]),
        ([[1, 1, 1]] * 4, {"capacity": 40}, [12]),
    ],
)
def test_a_tower_runs_on_as_many_images_as_are_needed(images, needed, options, images_seen):
    tower = Counting()
    needed = np.array(needed, bool)
    features = ran(tower, images, needed, **options)
    expected = np.where(needed[:, :, None, None], 2.0 * np.asarray(images)[:, :, 0, :1], 0.0)
    np.testing.assert_array_equal(features, expected)
    assert tower.runs == images_seen


def test_groups_and_capacity_that_make_no_sense_are_refused(images):
    needed = jnp.ones((4, 3), bool)
    with pytest.raises(ValueError, match="groups=3 does not divide 4 rows"):
        run_where(Counting(), (1, 3), images, needed, groups=3)
    with pytest.raises(ValueError, match="capacity=0"):
        run_where(Counting(), (1, 3), images, needed, capacity=0)


def test_gathered_images_stay_on_their_devices_and_give_the_same_features(images):
    mesh = make_mesh(MeshConfig(slice=1, fsdp=4, context=1, tensor=1), jax.devices()[:4])
    graph, params = nnx.split(make_vit(CLIP, nnx.Rngs(0)))
    needed = jnp.asarray(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]], bool))

    def run(params, images, needed):
        return run_where(nnx.merge(graph, params), (9, 16), images, needed, capacity=4, groups=4)

    plain = np.asarray(jax.jit(run)(params, images, needed))
    rows = sharding(mesh, "batch")
    compiled = (
        jax.jit(run, out_shardings=rows)
        .lower(jax.device_put(params, sharding(mesh)), jax.device_put(images, rows), jax.device_put(needed, rows))
        .compile()
    )
    split = compiled(jax.device_put(params, sharding(mesh)), jax.device_put(images, rows), jax.device_put(needed, rows))
    np.testing.assert_allclose(split, plain, atol=1e-5)
    assert "all-gather" not in compiled.as_text()
