"""The doors for weights: each kind of folder and state dict becomes its module, and what is unknown is named."""

import json
from pathlib import Path

import numpy as np
import pytest
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
        found = np.asarray(tower.hidden_states(pixels, layer))
        assert np.abs(found - published[key]).max() <= 1e-4 * np.abs(published[key]).max()


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_folder_gives_the_published_logits(name):
    folder = FIXTURES / "hf" / name
    published = np.load(folder / "reference.npz")
    found = np.asarray(from_hf(folder).logits(published["input_ids"].astype(np.int32)))
    assert np.abs(found - published["logits"]).max() <= 1e-4 * np.abs(published["logits"]).max()


def test_a_state_dict_of_the_diffusion_head_gives_the_published_output():
    published = outputs("mar_diffloss")
    head = from_state_dict("diffusion_mlp", state_dict("mar_diffloss"))
    found = np.asarray(head.network(published["noised"], published["timestep"], published["condition"]))
    assert np.abs(found - published["network_output"]).max() <= 1e-4 * np.abs(published["network_output"]).max()


def test_what_is_unknown_is_named_with_what_is_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen4"}))
    with pytest.raises(UsageError, match=r"qwen4.*expected one of.*dinov2.*qwen3"):
        from_hf(tmp_path)
    with pytest.raises(UsageError, match=r"vq17.*expected one of vq16, kl16, diffusion_mlp"):
        from_state_dict("vq17", {})
