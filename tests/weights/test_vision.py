"""Vision towers loaded from Hugging Face folders give the outputs of ``transformers``, on one device and on eight.

``fixtures/hf/NAME``: tiny random checkpoints, with what ``transformers`` 5.23 makes of them (float32, CPU).
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import relative_error
from flax import nnx
from safetensors.numpy import load_file, save_file

from unihetero_jax.config import MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.mesh import make_mesh, sharding
from unihetero_jax.towers.common.vit import weights as vision
from unihetero_jax.towers.common.vit.preprocess import prepare

HF = Path(__file__).parents[1] / "fixtures" / "hf"
NAMES = ("dinov2", "dinov2_swiglu", "dinov2_registers", "siglip", "clip")


def reference(name):
    return dict(np.load(HF / name / "reference.npz"))


def channels_last(pixels):
    return jnp.asarray(pixels.transpose(0, 2, 3, 1))


@nnx.jit(static_argnames="layer")
def hidden_states(tower, pixels, layer=-1):
    return tower.hidden_states(pixels, layer)


@pytest.fixture(scope="module")
def towers():
    return {name: vision.load(HF / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_float32_parity(towers, name):
    published = reference(name)
    pixels = channels_last(published["pixel_values"])
    assert relative_error(hidden_states(towers[name], pixels), published["last_hidden_state"]) <= 1e-4
    assert relative_error(hidden_states(towers[name], pixels, layer=-2), published["penultimate_hidden_state"]) <= 1e-4


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers", "siglip", "clip"])
def test_other_grids_are_interpolated_as_transformers_does(towers, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(HF / name).eval()
    options = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
    for height, width in ((112, 80), (42, 56)):
        pixels = np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(pixels), **options).last_hidden_state.numpy()
        assert relative_error(hidden_states(towers[name], channels_last(pixels)), expected) <= 1e-4


@pytest.mark.parametrize("name", ["dinov2_swiglu", "clip"])
def test_bfloat16_is_close(name):
    tower = vision.load(HF / name, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(tower, nnx.Param))} == {jnp.dtype("bfloat16")}
    published = reference(name)
    hidden = hidden_states(tower, channels_last(published["pixel_values"]))
    assert hidden.dtype == jnp.float32
    assert 1e-5 < relative_error(hidden, published["last_hidden_state"]) < 5e-2


@pytest.mark.parametrize("name", ["dinov2_swiglu", "siglip", "clip"])
def test_sharded_equals_unsharded(towers, name):
    mesh = make_mesh(MeshConfig(slice=1, fsdp=2, context=1, tensor=4))
    tower = vision.load(HF / name, mesh=mesh)
    kernel = tower.layers.up.kernel.get_value()
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 32, kernel.shape[2] // 4)
    graph, params = nnx.split(tower)
    pixels = jax.device_put(channels_last(reference(name)["pixel_values"]), sharding(mesh, "batch", None, None, None))
    run = jax.jit(lambda params, pixels: nnx.merge(graph, params).hidden_states(pixels, -1, mesh))
    plain = np.asarray(hidden_states(towers[name], channels_last(reference(name)["pixel_values"])))
    assert relative_error(run(params, pixels), plain) <= 1e-5


@pytest.mark.parametrize(("layer", "blocks"), [(-1, 3), (-2, 2), (-4, 0)])
def test_blocks_behind_the_layer_are_not_computed(towers, layer, blocks):
    traced = jax.make_jaxpr(lambda pixels: towers["siglip"].hidden_states(pixels, layer))(jnp.zeros((1, 32, 32, 3)))
    scans = [equation.params["length"] for equation in traced.eqns if equation.primitive.name == "scan"]
    assert scans == [blocks]


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(HF / "siglip", tmp_path / "siglip"))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def test_a_whole_model_in_two_files_is_read_and_its_text_tower_listed(folder, towers):
    tensors = load_file(folder / "model.safetensors")
    prefixed = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    split = dict(sorted(prefixed.items())[:20])
    save_file(split, folder / "model-00001-of-00002.safetensors")
    rest = {name: tensor for name, tensor in prefixed.items() if name not in split}
    text = {"text_model.embeddings.token_embedding.weight": np.zeros((4, 4), np.float32), "logit_scale": np.zeros(1)}
    save_file({**rest, **text}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{2 - (name in split)}-of-00002.safetensors" for name in (*prefixed, *text)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": values}))
    pixels = channels_last(reference("siglip")["pixel_values"])
    np.testing.assert_array_equal(hidden_states(vision.load(folder), pixels), hidden_states(towers["siglip"], pixels))
    made = vision.convert(towers["siglip"].config, prefixed.keys() | text.keys(), {**prefixed, **text}.get, "here")
    assert {*text, "vision_model.head.probe"} <= set(made.unused)
    assert not any(name.startswith("vision_model.encoder") for name in made.unused)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if not k.endswith("1.mlp.fc1.bias")}, r"1 tensors missing: encoder"),
        (
            lambda t: {**t, "encoder.layers.3.mlp.fc1.bias": np.zeros(3)},
            r"does not have: encoder.layers.3.mlp.fc1.bias",
        ),
        (lambda t: {**t, "encoder.layers.2.mlp.fc1.bias": np.zeros(3)}, r"layers.2.mlp.fc1.bias has shape \(3,\)"),
        (lambda t: {**t, "encoder.layers.0.self_attn.q_proj.weight": np.zeros((3, 3))}, r"q_proj.weight has shape"),
        (lambda t: {"weight": np.zeros(3)}, r"no tensor called embeddings.patch_embedding.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(UsageError, match=message):
        vision.load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "vit"}, r"config.json: model_type='vit'; expected one of .*dinov2"),
        ({"model_type": "siglip_vision_model", "hidden_act": "relu"}, r"hidden_act='relu'; siglip towers"),
        ({"model_type": "dinov2", "qkv_bias": False}, r"qkv_bias=False"),
    ],
)
def test_another_architecture_is_refused(folder, values, message):
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=message):
        vision.load(folder)


def test_files_that_are_not_there_are_named(tmp_path, folder):
    with pytest.raises(UsageError, match=r"config.json does not exist"):
        vision.load(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights; expected"):
        vision.load(folder)


def test_the_image_processor_of_the_folder_is_followed(towers):
    config = towers["dinov2"].config
    published = {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": {"shortest_edge": 256},
    }
    assert vision.with_processing(config, published, "there") == dataclasses.replace(
        config, input_size=224, shortest_edge=256
    )
    squeezed = vision.with_processing(config, {"size": {"height": 98, "width": 98}}, "there")
    assert (squeezed.input_size, squeezed.shortest_edge) == (98, 0)
    old = vision.with_processing(config, {"size": 224, "crop_size": 196, "do_center_crop": True}, "there")
    assert (old.input_size, old.shortest_edge) == (196, 224)
    with pytest.raises(UsageError, match=r"there: resample=2; dinov2 towers work with \[3\]"):
        vision.with_processing(config, {"resample": 2}, "there")
    with pytest.raises(UsageError, match=r"there: image_mean"):
        vision.with_processing(config, {"image_mean": [0.5, 0.5, 0.5]}, "there")


def test_how_a_tower_is_used_is_said_when_it_is_loaded():
    tower = vision.load(HF / "clip", layer=-2, class_token=True, input_size=42)
    images = np.random.default_rng(0).integers(0, 256, (1, 2, 42, 42, 3), dtype=np.uint8)
    hidden = hidden_states(tower, prepare(jnp.asarray(images[0]), tower.config), layer=-2)
    assert tower.tokens == 10
    np.testing.assert_allclose(tower(jnp.asarray(images))[0], hidden, atol=1e-4)
    with pytest.raises(UsageError, match=r"clip: width is no option of a vision tower; expected one of input_size"):
        vision.load(HF / "clip", width=3)
    with pytest.raises(UsageError, match=r"clip.layer=-5: expected"):
        vision.load(HF / "clip", layer=-5)


def test_partial_configs_of_whole_models_take_the_published_defaults():
    base = vision.vit_config({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}, "x")
    assert (base.width, base.layers, base.heads, base.mlp_width, base.token_count) == (768, 12, 12, 3072, 196)
