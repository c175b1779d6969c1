"""MAR's per-token diffusion head in torch's layout → ours.

Their names (github.com/LTH14/mar, ``models/diffloss.py``): ``time_embed.mlp.{0,2}``, ``cond_embed``, ``input_proj``,
``res_blocks.N.{in_ln, mlp.{0,2}, adaLN_modulation.1}``, ``final_layer.{adaLN_modulation.1, linear}``; linear weights
are [out, in].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion.config import DiffusionConfig
from unihetero_jax.model.diffusion.head import DiffusionHead

PREFIXES = ("", "net.", "diffloss.net.")

_LINEARS = {
    "time_hidden": "time_embed.mlp.0",
    "time_output": "time_embed.mlp.2",
    "condition": "cond_embed",
    "input": "input_proj",
    "final_modulation": "final_layer.adaLN_modulation.1",
    "output": "final_layer.linear",
}
_BLOCK_LINEARS = {"hidden": "mlp.0", "output": "mlp.2", "modulation": "adaLN_modulation.1"}


def from_state_dict(arrays: Mapping[str, Any]) -> DiffusionHead:
    """The head with these parameters, float32.

    Its sizes, and whether the variance is learned (DDPM) or not (flow), are read off the shapes. Names may carry the
    prefix ``net.`` (the loss alone) or ``diffloss.net.`` (a whole MAR model, whose other parameters are left aside).

    Args:
      arrays: by torch name.

    Raises:
      UsageError: listing by name what is missing, what is left over, or what has another shape.
    """
    prefix = next((prefix for prefix in PREFIXES if f"{prefix}input_proj.weight" in arrays), None)
    if prefix is None:
        raise UsageError(
            "diffusion_mlp: no input_proj.weight among the parameters (nor with the prefix net. or diffloss.net.); "
            f"found {_listed(sorted(arrays))}"
        )
    named = {name.removeprefix(prefix): name for name in arrays if name.startswith(prefix) or prefix != "diffloss.net."}
    blocks = {int(found[1]) for name in named if (found := re.match(r"res_blocks\.(\d+)\.", name))}
    depth = max(blocks, default=-1) + 1
    wanted = {f"{name}.{part}" for name in _LINEARS.values() for part in ("weight", "bias")}
    for number in range(depth):
        for name in ("in_ln", *_BLOCK_LINEARS.values()):
            wanted |= {f"res_blocks.{number}.{name}.{part}" for part in ("weight", "bias")}
    missing, left = sorted(wanted - set(named)), sorted(named[name] for name in set(named) - wanted)
    if missing or left or not depth:
        missing = [prefix + name for name in missing] or ([] if depth else [f"{prefix}res_blocks.0.*"])
        parts = [f"{words} {_listed(names)}" for words, names in (("missing", missing), ("unknown", left)) if names]
        raise UsageError(f"diffusion_mlp: {'; '.join(parts)}")
    return _fill({name: np.asarray(arrays[named[name]]).astype(np.float32) for name in sorted(wanted)}, depth, prefix)


def _fill(arrays: dict[str, np.ndarray], depth: int, prefix: str) -> DiffusionHead:
    for name in ("input_proj.weight", "cond_embed.weight", "final_layer.linear.weight"):
        if arrays[name].ndim != 2:
            raise UsageError(f"diffusion_mlp: {prefix}{name} has shape {arrays[name].shape}; expected two dimensions")
    width, channels = arrays["input_proj.weight"].shape
    outputs = arrays["final_layer.linear.weight"].shape[0]
    if outputs not in (channels, 2 * channels):
        raise UsageError(
            f"diffusion_mlp: {prefix}final_layer.linear.weight has {outputs} outputs; expected {channels} (flow), or "
            f"{2 * channels} (noise and variance), for the {channels} channels of {prefix}input_proj.weight"
        )
    config = DiffusionConfig(
        depth=depth,
        width=width,
        objective="ddpm" if outputs == 2 * channels else "flow",
        condition_dropout=0.0,
    )
    condition = arrays["cond_embed.weight"].shape[1]
    head = nnx.eval_shape(lambda: DiffusionHead(config, condition, 1, channels, rngs=nnx.Rngs(0)))

    def put(parameter: nnx.Param, names: list[str]) -> None:
        """One parameter from theirs, or from those of all blocks stacked; a matrix is turned round."""
        stacked = len(names) > 1 or names[0].startswith("res_blocks.")
        shape = parameter.get_value().shape[stacked:]
        for name in names:
            if arrays[name].shape != shape[::-1]:
                raise UsageError(
                    f"diffusion_mlp: {prefix}{name} has shape {arrays[name].shape}; expected {shape[::-1]}"
                )
        parameter.set_value(
            jnp.asarray(np.stack([arrays[name].T for name in names]) if stacked else arrays[names[0]].T)
        )

    network = head.network
    for ours, theirs in _LINEARS.items():
        put(getattr(network, ours).kernel, [f"{theirs}.weight"])
        put(getattr(network, ours).bias, [f"{theirs}.bias"])

    def all_blocks(name: str) -> list[str]:
        return [f"res_blocks.{number}.{name}" for number in range(depth)]

    put(network.blocks.norm.scale, all_blocks("in_ln.weight"))
    put(network.blocks.norm.bias, all_blocks("in_ln.bias"))
    for ours, theirs in _BLOCK_LINEARS.items():
        put(getattr(network.blocks, ours).kernel, all_blocks(f"{theirs}.weight"))
        put(getattr(network.blocks, ours).bias, all_blocks(f"{theirs}.bias"))
    return head


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
