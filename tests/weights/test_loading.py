"""The doors for weights: each kind of folder and state dict becomes its module, and what is unknown is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from agreement import relative_error
from fixtures.procedural import outputs, state_dict

from unihetero_jax.errors import UsageError
from unihetero_jax.weights import from_hf, from_state_dict

FIXTURES = Path(__file__).parents[1] / "fixtures"
LANGUAGE = ("llama", "llama_gqa_tied", "qwen2", "qwen3")
VISION = ("clip", "dinov2", "dinov2_registers", "dinov2_swiglu", "siglip")


@pytest.mark.parametrize("name", VISION)
def test_a_vision_folder_gives_the_published_hidden_states(name):
    folder = FIXTURES / "hf" / name
    published = np.load(folder / "reference.npz")
    pixels = published["pixel_values"].transpose(0, 2, 3, 1)
    tower = from_hf(folder)
    for layer, key in ((-1, "last_hidden_state"), (-2, "penultimate_hidden_state")):
        found = tower.hidden_states(pixels, layer)
        assert relative_error(found, published[key]) <= 1e-4


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_folder_gives_the_published_logits(name):
    folder = FIXTURES / "hf" / name
    published = np.load(folder / "reference.npz")
    found = from_hf(folder).logits(published["input_ids"].astype(np.int32))
    assert relative_error(found, published["logits"]) <= 1e-4


def test_a_state_dict_of_the_diffusion_head_gives_the_published_output():
    published = outputs("mar_diffloss")
    head = from_state_dict("diffusion_mlp", state_dict("mar_diffloss"))
    found = head.network(published["noised"], published["timestep"], published["condition"])
    assert relative_error(found, published["network_output"]) <= 1e-4


@pytest.mark.parametrize("name", ["clip", "qwen3"])
def test_another_dtype_is_refused_for_every_kind(name):
    with pytest.raises(UsageError, match=r"^dtype='float46': expected one of float32, bfloat16; did you mean"):
        from_hf(FIXTURES / "hf" / name, dtype="float46")


def test_what_is_unknown_is_named_with_what_is_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen4"}))
    with pytest.raises(UsageError, match=r"qwen4.*expected one of.*dinov2.*qwen3"):
        from_hf(tmp_path)
    with pytest.raises(UsageError, match=r"vq17.*expected one of kl16, vq16, diffusion_mlp"):
        from_state_dict("vq17", {})
