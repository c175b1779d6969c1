"""Published decoders: the same numbers as those who published them, in and out."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import relative_error
from flax import nnx

from unihetero_jax.config import MeshConfig, RopeScalingConfig
from unihetero_jax.config.components import DECODER_FAMILIES
from unihetero_jax.errors import UsageError
from unihetero_jax.model.decoder import rotary_frequencies
from unihetero_jax.parallel.mesh import make_mesh
from unihetero_jax.weights import from_hf, to_hf
from unihetero_jax.weights.tensors import TensorFiles
from unihetero_jax.weights.writer import Tensor, write_folder

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "hf"
NAMES = ("llama", "llama_gqa_tied", "qwen2", "qwen3")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# What a test changes in a decoder before it is written; the fixtures have none of it.
CHANGED = {
    "logit_scale": {"logit_scale": 0.15},
    "llama3": {"rope_scaling": RopeScalingConfig("llama3", original_positions=16)},
    "linear": {"rope_scaling": RopeScalingConfig("linear", factor=4.0)},
}


def read_config(file: Path, values: dict):
    return DECODER_FAMILIES.find(values["model_type"]).config(file, values)


def reference(name: str):
    return np.load(FIXTURES / name / "reference.npz")


def message(call) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    with TensorFiles(folder) as files:
        return {name: np.array(files.read(name)) for name in files.names}


def write(folder: Path, tensors: dict[str, np.ndarray], values: dict, **options) -> Path:
    """A published folder of these tensors and config."""
    todo = [Tensor(name, array.shape, array.dtype, lambda array=array: array) for name, array in tensors.items()]
    write_folder(folder, todo, {"config.json": json.dumps(values)}, **options)
    return folder


def config_of(name: str) -> dict:
    return json.loads((FIXTURES / name / "config.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_logits_embeddings_and_greedy_tokens_are_theirs(name):
    expected = reference(name)
    model = from_hf(FIXTURES / name)
    tokens = expected["input_ids"]
    with jax.default_matmul_precision("highest"):
        logits = nnx.jit(type(model).logits)(model, tokens)
        greedy = nnx.jit(type(model).greedy, static_argnums=2)(model, expected["greedy"][:, :5], 12)
    assert logits.dtype == jnp.float32
    assert relative_error(logits, expected["logits"]) <= 1e-4
    assert relative_error(model.decoder.embed(jnp.asarray(tokens)), expected["hidden_states_0"]) <= 1e-4
    np.testing.assert_array_equal(greedy, expected["greedy"])


@pytest.mark.parametrize("name", ["llama_gqa_tied", "qwen3"])
def test_bfloat16_is_near_float32(name):
    expected = reference(name)
    model = from_hf(FIXTURES / name, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {np.dtype("bfloat16")}
    logits = nnx.jit(type(model).logits)(model, expected["input_ids"])
    assert logits.dtype == jnp.float32
    assert 1e-4 < relative_error(logits, expected["logits"]) <= 0.05


def test_parameters_land_sharded_and_are_the_same():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    whole, split = (nnx.state(from_hf(FIXTURES / "qwen2", mesh=where), nnx.Param) for where in (None, mesh))
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_array_equal(left, right)
    kernel = split["decoder"]["layers"]["gate"]["kernel"].get_value()
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 16, 88)}
    table = split["decoder"]["embedding"].get_value()
    assert {shard.data.shape for shard in table.addressable_shards} == {(128, 16)}


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_new_rows_of_the_vocabulary_start_at_the_mean_of_the_old(name):
    stored = tensors_of(FIXTURES / name)
    for mesh in (None, make_mesh(MeshConfig(fsdp=2, tensor=4))):
        model = from_hf(FIXTURES / name, vocabulary=203, mesh=mesh)
        assert model.logits(np.zeros((1, 2), int)).shape == (1, 2, 203)
        tables = [(stored["model.embed_tokens.weight"], np.asarray(model.decoder.embedding[...]))]
        if "lm_head.weight" in stored:
            tables.append((stored["lm_head.weight"], np.asarray(model.decoder.head[...]).T))
        for theirs, ours in tables:
            np.testing.assert_array_equal(ours[:199], theirs)
            np.testing.assert_allclose(ours[199:], np.repeat(theirs.mean(0)[None], 256 - 199, 0), rtol=1e-4, atol=1e-7)
    assert "vocabulary=198: expected 199" in message(lambda: from_hf(FIXTURES / name, vocabulary=198))


def test_rope_theta_may_be_where_old_versions_put_it(tmp_path):
    values = config_of("qwen2")
    new, _ = read_config(tmp_path, values)
    del values["rope_parameters"]
    assert read_config(tmp_path, values | {"rope_theta": 1e6})[0] == new
    assert new.rope_theta == 1e6
    assert read_config(tmp_path, values | {"rope_theta": 1e6, "rope_scaling": None})[0] == new
    assert read_config(tmp_path, values)[0].rope_theta == 10_000


@pytest.mark.parametrize(("name", "width"), [("qwen3", 128), ("llama", 0)])
def test_heads_without_a_width_have_that_of_the_family(name, width):
    file = FIXTURES / name / "config.json"
    values = json.loads(file.read_text())
    values.pop("head_dim", None)
    assert read_config(file, values)[0].head_width == width


def test_scaled_positions_are_read_old_and_new_and_written(tmp_path):
    values = config_of("llama")
    config, _ = read_config(tmp_path, values | {"rope_parameters": LLAMA3})
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScalingConfig("llama3", 8.0, 1.0, 4.0, 16)
    del values["rope_parameters"]
    old = {"rope_theta": 5e5, "rope_scaling": {key: LLAMA3[key] for key in LLAMA3 if key != "rope_theta"}}
    assert read_config(tmp_path, values | old)[0] == config
    linear, _ = read_config(tmp_path, values | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert linear.rope_scaling == RopeScalingConfig("linear", 2.0)
    for number, wanted in enumerate((config, linear)):
        out = tmp_path / str(number)
        to_hf(from_hf(FIXTURES / "llama"), wanted, out)
        assert read_config(out, json.loads((out / "config.json").read_text()))[0] == wanted


@pytest.mark.parametrize("positions", [16, 8192])
def test_scaled_frequencies_are_those_of_transformers(positions):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = LLAMA3 | {"original_max_position_embeddings": positions}
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 8 * positions}
    theirs = transformers.LlamaConfig(**sizes, rope_parameters=rope)
    expected, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    assert attention_factor == 1
    found = rotary_frequencies(128, 5e5, RopeScalingConfig("llama3", original_positions=positions))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope_type='yarn' is not supported: expected one of default, linear, llama3",
        ),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2}, "rope_parameters": None}, "rope_type='dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor=None: expected a number above 0"),
        ("llama", {"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}}, "expected a value above low_frequency"),
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported for llama: expected 'silu'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen3", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"hidden_size": None}, "hidden_size=None: expected a positive integer"),
        ("llama", {"num_key_value_heads": 3}, "kv_heads=3 does not divide"),
        ("llama", {"model_type": "lama"}, "; did you mean 'llama'?"),
    ],
)
def test_a_config_that_we_cannot_follow_is_refused(name, change, expected, tmp_path):
    shutil.copytree(FIXTURES / name, tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text(json.dumps(config_of(name) | change))
    text = message(lambda: from_hf(tmp_path / "x"))
    assert expected in text
    assert "config.json" in text


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", ""])
def test_prefixes_buffers_and_other_towers_are_no_obstacle(prefix, tmp_path):
    renamed = {}
    for name, array in tensors_of(FIXTURES / "llama").items():
        head = "language_model.lm_head.weight" if prefix == "language_model.model." else "lm_head.weight"
        renamed[head if name == "lm_head.weight" else prefix + name.removeprefix("model.")] = array
    renamed[f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    if prefix:
        renamed["vision_tower.blocks.0.weight"] = np.ones((2, 2), np.float32)
    left, right = (
        nnx.state(from_hf(folder), nnx.Param)
        for folder in (FIXTURES / "llama", write(tmp_path / "x", renamed, config_of("llama")))
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, left, right))


def test_what_is_missing_and_what_is_left_over_is_named(tmp_path):
    tensors = tensors_of(FIXTURES / "llama")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
    text = message(lambda: from_hf(write(tmp_path / "x", tensors, config_of("llama"))))
    assert "1 parameters are missing: layers.1.mlp.up_proj.weight" in text
    assert "1 parameters have no place in the model: model.layers.0.self_attn.q_proj.bias" in text
    # Two layers where the config says three, and a shape that is not the config's.
    text = message(lambda: from_hf(write(tmp_path / "y", tensors_of(FIXTURES / "llama"), config_of("qwen2"))))
    assert "9 parameters are missing: layers.0.self_attn.k_proj.bias" in text
    tensors = tensors_of(FIXTURES / "llama") | {"model.norm.weight": np.ones(63, np.float32)}
    text = message(lambda: from_hf(write(tmp_path / "z", tensors, config_of("llama"))))
    assert "model.norm.weight (ours: norm.scale) has shape [63], expected [64]" in text


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_is_what_was_imported(name, tmp_path):
    config, _ = read_config(tmp_path, config_of(name))
    to_hf(from_hf(FIXTURES / name), config, tmp_path / "out", shard_bytes=100_000)
    before, after = tensors_of(FIXTURES / name), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == config_of(name)["model_type"]
    text = message(lambda: to_hf(from_hf(FIXTURES / name), config, tmp_path / "out"))
    assert "expected a name for a new folder" in text


@pytest.mark.parametrize("name", [*NAMES, *CHANGED])
def test_transformers_gives_the_same_logits_from_an_exported_folder(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = FIXTURES / ("llama_gqa_tied" if name in CHANGED else name)
    config, _ = read_config(tmp_path, config_of(source.name))
    model = from_hf(source, vocabulary=205)
    if name in CHANGED:
        plain = np.asarray(nnx.jit(type(model).logits)(model, reference(source.name)["input_ids"]))
        config = dataclasses.replace(config, **CHANGED[name])
        model.decoder.config = config
    to_hf(model, config, tmp_path / "out")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    tokens = reference(source.name)["input_ids"]
    with torch.no_grad():
        expected = theirs.float().eval()(torch.from_numpy(tokens)).logits.numpy()
    with jax.default_matmul_precision("highest"):
        found = np.asarray(nnx.jit(type(model).logits)(model, tokens))
    assert found.shape == expected.shape == (2, 17, 205)
    assert relative_error(found, expected) <= 1e-4
    if name in CHANGED:
        assert relative_error(found, plain) > 1e-2, "the change is seen"


def test_a_decoder_that_no_family_computes_is_not_exported(tmp_path):
    config, _ = read_config(tmp_path, config_of("qwen2"))
    both = dataclasses.replace(config, qk_norm=True)
    assert "qkv_bias=True and qk_norm=True" in message(lambda: to_hf({"embedding": np.zeros(2)}, both, tmp_path / "o"))
    text = message(lambda: to_hf({"embedding": np.zeros(2)}, config, tmp_path / "o", family="llama"))
    assert "can be written as 'qwen2'" in text


OWN_FAMILY = """\
import unihetero_jax
from unihetero_jax.model.families.base import REFUSED, DecoderFamily


@unihetero_jax.register_decoder_family("alpaca")
class Alpaca(DecoderFamily):
    architecture = "LlamaForCausalLM"
    refused = (*REFUSED, ("wool", (None, False)))
"""


def test_a_family_of_the_users_own_is_read_and_written(tmp_path, monkeypatch):
    (tmp_path / "alpaca.py").write_text(OWN_FAMILY)
    folder = Path(shutil.copytree(FIXTURES / "llama", tmp_path / "alpaca"))
    values = config_of("llama") | {"model_type": "alpaca"}
    (folder / "config.json").write_text(json.dumps(values))
    # What it registers is gone after the test.
    monkeypatch.setattr(DECODER_FAMILIES, "_components", dict(DECODER_FAMILIES._components))
    runpy.run_path(str(tmp_path / "alpaca.py"))
    model, published = from_hf(folder), reference("llama")
    found = model.logits(published["input_ids"].astype(np.int32))
    assert relative_error(found, published["logits"]) <= 1e-4
    config, _ = read_config(folder / "config.json", values)
    to_hf(model, config, tmp_path / "own", family="alpaca")
    assert json.loads((tmp_path / "own" / "config.json").read_text())["model_type"] == "alpaca"
    # By default, the package's own family is written.
    to_hf(model, config, tmp_path / "llama")
    assert json.loads((tmp_path / "llama" / "config.json").read_text())["model_type"] == "llama"
    assert "wool=True is not supported for alpaca: expected False" in message(
        lambda: read_config(folder, values | {"wool": True})
    )
