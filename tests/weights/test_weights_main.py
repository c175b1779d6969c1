"""``unihetero weights`` as it is typed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_config import tiny_config

from unihetero_jax import cli
from unihetero_jax.checkpoint import restore as checkpoint
from unihetero_jax.config import RopeScalingConfig
from unihetero_jax.config import loading as config_file
from unihetero_jax.model.build import define, define_language_model
from unihetero_jax.model.initial_weights import start_from
from unihetero_jax.parallel.mesh import evaluation_mesh
from unihetero_jax.run import convert_weights as main
from unihetero_jax.weights import from_hf, to_hf

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "hf"
LLAMA = FIXTURES / "llama"


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "qwen3"
    shutil.copytree(FIXTURES / "qwen3", folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_an_import_holds_parameters_config_and_tokenizer(published, tmp_path, capsys):
    out = tmp_path / "made"
    assert cli.main(["weights", "import", str(published), f"--out={out}", "--dtype=bfloat16"]) == 0
    assert "qwen3, 192,128 parameters in bfloat16; tokenizer: tokenizer.json" in capsys.readouterr().out
    assert (out / "tokenizer.json").read_text() == "{}"
    assert json.loads((out / "config.json").read_text())["kind"] == "decoder"
    expected = nnx.to_pure_dict(nnx.state(from_hf(published, dtype="bfloat16"), nnx.Param))
    found = checkpoint.restore_numpy(out / "params")
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
    assert cli.main(["weights", "inspect", str(out)]) == 0
    text = capsys.readouterr().out
    assert "decoder.layers.query_norm.scale" in text
    assert "family: qwen3 (decoder)" in text
    assert cli.main(["weights", "import", str(published), f"--out={out}"]) == 2
    assert "expected a name for a new folder" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["made", "qwen3"]


def test_inspect_lists_a_published_folder_and_a_file(published, capsys):
    assert cli.main(["weights", "inspect", str(published)]) == 0
    text = capsys.readouterr().out
    assert "model.layers.2.self_attn.q_norm.weight" in text
    assert "F32       [199, 64]" in text
    assert "parameters in 35 tensors" in text
    assert "tokenizer: tokenizer.json" in text
    assert cli.main(["weights", "inspect", str(published / "model.safetensors")]) == 0
    assert "family: unknown" in capsys.readouterr().out


def test_inspect_says_what_a_run_sets_to_start_from_a_decoder(tmp_path, capsys):
    """The lines, put into a config file as they are printed, start a run from llama3-scaled weights."""
    theirs = dataclasses.replace(
        tiny_config().model.decoder,
        logit_scale=1.0,
        tie_embeddings=False,
        qkv_bias=True,
        rope_scaling=RopeScalingConfig("llama3", original_positions=64),
    )
    params = jax.jit(define_language_model(theirs, 128).init)(jax.random.key(0))["decoder"]
    to_hf(params, theirs, tmp_path / "hf", vocabulary=128)
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"")
    assert cli.main(["weights", "inspect", str(tmp_path / "hf")]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    config.")]
    assert f'config.init.path = "{tmp_path / "hf"}"' in lines
    assert "config.init.tokenizer = True" in lines
    assert 'config.model.decoder.rope_scaling.kind = "llama3"' in lines
    config = config_of(lines, tmp_path)
    model = define(config, 133)
    mesh = evaluation_mesh(1)
    started = start_from(
        config, model, jax.jit(model.init, out_shardings=model.shardings(mesh))(jax.random.key(1)), mesh
    )
    np.testing.assert_array_equal(started["decoder"]["layers"]["query"]["bias"], params["layers"]["query"]["bias"])


def config_of(lines, place):
    """Of a config file in which these printed lines stand."""
    body = "\n    ".join(["config = defaults()", *lines, "return config"])
    (place / "config.py").write_text(f"from unihetero_jax.config import defaults\n\n\ndef get_config():\n    {body}\n")
    return config_file.load(place / "config.py", [])


@pytest.mark.parametrize("name", ["clip", "dinov2_swiglu", "dinov2_registers", "siglip"])
def test_inspect_says_what_a_run_sets_to_start_from_a_tower(name, tmp_path, capsys):
    assert cli.main(["weights", "inspect", str(FIXTURES / name)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    config.")]
    assert f'config.init.understanding_tower = "{FIXTURES / name}"' in lines
    section = config_of([*lines, "config.losses.pixel.weight = 0.0"], tmp_path).model.understanding_tower
    assert dataclasses.replace(section, preset="") == from_hf(FIXTURES / name).config


def test_a_published_tower_of_full_size_is_told_by_its_preset(tmp_path):
    processing = {"do_center_crop": True, "crop_size": 336, "size": 336, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processing))
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    values = {"model_type": "clip", "vision_config": {**sizes, "image_size": 336, "patch_size": 14}}
    lines = main.start_lines(tmp_path, values, False)
    assert lines == [
        f'config.init.understanding_tower = "{tmp_path}"',
        'config.model.understanding_tower.kind = "clip"',
        'config.model.understanding_tower.preset = "clip-vit-large-patch14-336"',
    ]
    larger = {"model_type": "clip", "vision_config": {**values["vision_config"], "num_hidden_layers": 23}}
    assert "config.model.understanding_tower.layers = 23" in main.start_lines(tmp_path, larger, False)
    smaller = processing | {"crop_size": 224, "size": 336}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(smaller))
    assert "config.model.understanding_tower.input_size = 224" in main.start_lines(tmp_path, values, False)


def test_inspect_says_why_no_run_can_start_from_a_decoder(published, capsys):
    values = json.loads((published / "config.json").read_text()) | {"use_sliding_window": True}
    (published / "config.json").write_text(json.dumps(values))
    assert cli.main(["weights", "inspect", str(published)]) == 0
    out = capsys.readouterr().out
    assert "cannot start from it: " in out.splitlines()[-1]
    assert "use_sliding_window=True is not supported" in out.splitlines()[-1]
    assert "get_config" not in out


def test_a_run_is_exported_with_its_tokenizer(make_trained, watch_data, tmp_path, monkeypatch, capsys):
    trained = make_trained(**{"model.decoder.logit_scale": 1.0})
    shutil.copyfile(watch_data / "tokenizer.model", tmp_path / "tokenizer.model")
    monkeypatch.setattr(main, "load_trained", lambda workdir, step: trained)
    out = tmp_path / "out"
    main.export_weights(tmp_path, out, 7, None)
    text = capsys.readouterr().out
    assert "the decoder of step 7; tokenizer: tokenizer.model; left: " in text
    assert "adapter" in text
    assert (out / "tokenizer.model").read_bytes() == (watch_data / "tokenizer.model").read_bytes()
    params = nnx.to_pure_dict(nnx.state(from_hf(out, mesh=evaluation_mesh(1)), nnx.Param))["decoder"]
    size = trained.tokenizer.vocabulary_size
    np.testing.assert_array_equal(params["embedding"][:size], trained.params["decoder"]["embedding"][:size])
    np.testing.assert_array_equal(
        params["layers"]["query"]["kernel"], trained.params["decoder"]["layers"]["query"]["kernel"]
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["import", "nowhere", "--out=x"], "FOLDER: nowhere: no such directory"),
        (["import", str(LLAMA / "config.json"), "--out=x"], "config.json is a file: expected a directory"),
        (["import", str(LLAMA)], "missing --out=DIR"),
        (["import", str(LLAMA), f"--out={LLAMA / 'config.json'}"], "config.json is a file: expected a directory, or"),
        (["import", str(LLAMA), "--out=x", "--out=x"], "--out: given twice"),
        (["import", str(LLAMA), "--out=x", "--dtype=int8"], "value of --dtype 'int8': expected one of float32"),
        (["import", str(LLAMA), "--out=x", "--dtype=float32", "--dtype=float32"], "--dtype: given twice"),
        (["import", str(LLAMA), "--out=x", "--dtpye=float32"], "did you mean '--dtype'?"),
        (["inspect", "nowhere"], "PATH: nowhere: no such file or directory"),
        (["inspect", ""], "expected a path, got an empty value"),
        (["export", "--workdir=nowhere", "--out=x"], "--workdir: nowhere: no such directory"),
        (["export", f"--workdir={LLAMA}", "--out=x", "--step=-1"], "'-1': expected an integer, 0 or more"),
        (["imprt"], "did you mean 'import'?"),
    ],
)
def test_what_is_wrong_gets_one_line(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["weights", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
