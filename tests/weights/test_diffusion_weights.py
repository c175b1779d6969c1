"""MAR's diffusion head with its own parameters: our noising, network, losses and sampling give its numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import relative_error
from fixtures.procedural import outputs, state_dict
from flax import nnx

from unihetero_jax.config import MeshConfig
from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion.objectives import DDPM
from unihetero_jax.model.diffusion.samplers import trajectory
from unihetero_jax.model.head_weights.diffusion_mlp import DiffusionMLPWeights
from unihetero_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def reference():
    return outputs("mar_diffloss")


@pytest.fixture(scope="module")
def arrays():
    return state_dict("mar_diffloss")


@pytest.fixture(scope="module")
def head(arrays):
    return DiffusionMLPWeights.from_state_dict(arrays)


def test_noising_is_theirs(reference):
    noised = DDPM().schedule.noised(reference["target"], reference["noise"], reference["timestep"])
    assert relative_error(noised, reference["noised"]) <= 1e-6


def test_the_network_is_theirs(head, reference):
    found = head.network(reference["noised"], reference["timestep"], reference["condition"])
    assert relative_error(found, reference["network_output"]) <= 1e-4


def test_both_terms_of_the_loss_are_theirs(head, reference):
    given = [jnp.asarray(reference[name]) for name in ("target", "condition", "timestep", "noise")]
    terms = DDPM().terms(head.network, *given)
    assert relative_error(terms.mse, reference["mse"]) <= 1e-4
    assert relative_error(terms.vb, reference["vb"]) <= 1e-4
    assert relative_error(DDPM().token_losses(head.network, *given), reference["loss"]) <= 1e-4


def test_sampling_keeps_their_timesteps(reference):
    times = DDPM().schedule.respaced(25).network_times
    np.testing.assert_array_equal(times, reference["sampling_timestep_map"])


def test_every_step_of_sampling_is_theirs(head, reference):
    graph, state = nnx.split(head.network)
    run = jax.jit(lambda s, c, noise: trajectory(nnx.merge(graph, s), DDPM().schedule, c, noise))
    samples = run(state, reference["condition"], reference["sampling_noise"])
    assert len(samples) == 26
    for found, expected in zip(samples, reference["samples"], strict=True):
        assert relative_error(found, expected) <= 1e-4


def test_a_whole_model_gives_the_same_head(head, arrays, reference):
    whole = {f"diffloss.{name}": value for name, value in arrays.items()}
    whole["encoder_embed.weight"] = np.zeros((3, 3), np.float32)
    bare = {name.removeprefix("net."): value for name, value in arrays.items()}
    expected = head.network(reference["noised"], reference["timestep"], reference["condition"])
    for named in (whole, bare):
        network = DiffusionMLPWeights.from_state_dict(named).network
        found = network(reference["noised"], reference["timestep"], reference["condition"])
        np.testing.assert_array_equal(found, expected)


def test_half_precision_becomes_float32(arrays):
    head = DiffusionMLPWeights.from_state_dict({name: value.astype(np.float16) for name, value in arrays.items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(head, nnx.Param))} == {jnp.dtype("float32")}


def test_torch_tensors_are_taken_as_they_are(head, arrays):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value).bfloat16().requires_grad_() for name, value in arrays.items()}
    kernel = DiffusionMLPWeights.from_state_dict(tensors).network.time_output.kernel[...]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, head.network.time_output.kernel[...].astype(jnp.bfloat16))


def test_a_head_lands_sharded(head, arrays):
    split = DiffusionMLPWeights.from_state_dict(arrays, mesh=make_mesh(MeshConfig(fsdp=4, tensor=2)))
    kernel = split.network.time_output.kernel[...]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    np.testing.assert_array_equal(kernel, head.network.time_output.kernel[...])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net.cond_embed.bias": None}, r"1 parameters are missing: cond_embed\.bias$"),
        ({"net.res_blocks.1.mlp.2.weight": None}, r"missing: res_blocks\.1\.mlp\.2\.weight"),
        ({"net.extra.weight": np.zeros(3)}, r"1 parameters have no place in the model: net\.extra\.weight"),
        ({"head.weight": np.zeros(3)}, r"no place in the model: head\.weight"),
        ({"net.input_proj.weight": None}, "no input_proj.weight"),
        (
            {"net.res_blocks.2.mlp.0.bias": np.zeros(63)},
            r"mlp\.0\.bias \(ours: network\.blocks\.hidden\.bias\) has shape \[63\], expected \[64\]",
        ),
        (
            {"net.time_embed.mlp.0.weight": np.zeros((64, 128))},
            r"shape \[64, 128\], expected \[64, 256\]",
        ),
        ({"net.final_layer.linear.weight": np.zeros((40, 64))}, "40 outputs; expected 16 .flow., or 32"),
    ],
)
def test_what_does_not_fit_is_named(arrays, change, message):
    changed = {name: value for name, value in {**arrays, **change}.items() if value is not None}
    with pytest.raises(UsageError, match=message):
        DiffusionMLPWeights.from_state_dict(changed)


def test_a_head_without_blocks_is_refused(arrays):
    changed = {name: value for name, value in arrays.items() if "res_blocks" not in name}
    with pytest.raises(UsageError, match=r"missing net.res_blocks.0"):
        DiffusionMLPWeights.from_state_dict(changed)
