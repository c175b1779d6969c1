"""MAR's per-token diffusion head in torch's layout → ours.

Their names (github.com/LTH14/mar, ``models/diffloss.py``): ``time_embed.mlp.{0,2}``, ``cond_embed``, ``input_proj``,
``res_blocks.N.{in_ln, mlp.{0,2}, adaLN_modulation.1}``, ``final_layer.{adaLN_modulation.1, linear}``; linear weights
are [out, in].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from unihetero_jax.config.components import HEAD_WEIGHTS
from unihetero_jax.errors import UsageError
from unihetero_jax.model.diffusion.config import DiffusionConfig
from unihetero_jax.model.diffusion.head import DiffusionHead
from unihetero_jax.parallel.definition import ModelDefinition, define_module
from unihetero_jax.weights.fill import fill_module
from unihetero_jax.weights.layouts import MATRIX, SAME, Rule
from unihetero_jax.weights.tensors import GivenTensors, Stored, TensorFiles

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


@HEAD_WEIGHTS.register("diffusion_mlp")
class DiffusionMLPWeights:
    """MAR's per-token head."""

    @staticmethod
    def from_state_dict(arrays: Mapping[str, Any] | TensorFiles, *, mesh: Mesh | None = None) -> DiffusionHead:
        """Build the head with these parameters, float32.

        Its sizes, and whether the variance is learned (DDPM) or not (flow), are read off the shapes. Names may carry
        the prefix ``net.`` (the loss alone) or ``diffloss.net.`` (a whole MAR model, whose other parameters are left
        aside).

        Args:
          arrays: by torch name; or files, of which one tensor after another is read.
          mesh: over which the parameters are sharded; by default they go to one device.

        Raises:
          UsageError: listing by name what is missing, what is left over, or what has another shape.
        """
        files = arrays if isinstance(arrays, TensorFiles) else GivenTensors("diffusion_mlp", arrays)
        prefix = next((prefix for prefix in PREFIXES if f"{prefix}input_proj.weight" in files.names), None)
        if prefix is None:
            raise UsageError(
                "diffusion_mlp: no input_proj.weight among the parameters (nor with the prefix net. or diffloss.net.); "
                f"found {_listed(sorted(files.names))}"
            )
        start = prefix
        definition = _define(files.names, prefix)

        def rename(name: str) -> str | None:
            if name.startswith(start):
                return name.removeprefix(start)
            return None if start == "diffloss.net." else name

        return fill_module(definition, _rules(), files, rename, mesh)


def _define(names: Mapping[str, Stored], prefix: str) -> ModelDefinition[DiffusionHead]:
    """Return the definition of a head of the sizes that the shapes imply."""

    def shape(name: str) -> tuple[int, ...]:
        if prefix + name not in names:
            raise UsageError(f"diffusion_mlp: missing {prefix}{name}")
        found = names[prefix + name].shape
        if len(found) != 2:
            raise UsageError(f"diffusion_mlp: {prefix}{name} has shape {found}; expected two dimensions")
        return found

    depth = 1 + max(
        (int(found[1]) for name in names if (found := re.match(rf"{re.escape(prefix)}res_blocks\.(\d+)\.", name))),
        default=-1,
    )
    if not depth:
        raise UsageError(f"diffusion_mlp: missing {prefix}res_blocks.0.*")
    width, channels = shape("input_proj.weight")
    condition = shape("cond_embed.weight")[1]
    outputs = shape("final_layer.linear.weight")[0]
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
    return define_module(lambda rngs: DiffusionHead(config, condition, 1, channels, rngs=rngs))


def _rules() -> list[Rule]:
    """Return the name map."""
    blocks = {f"res_blocks.{{}}.{theirs}": ("blocks", ours) for ours, theirs in _BLOCK_LINEARS.items()}
    rules = [
        Rule("res_blocks.{}.in_ln.weight", ("network", "blocks", "norm", "scale"), SAME),
        Rule("res_blocks.{}.in_ln.bias", ("network", "blocks", "norm", "bias"), SAME),
    ]
    for theirs, ours in (blocks | {theirs: (ours,) for ours, theirs in _LINEARS.items()}).items():
        rules.append(Rule(f"{theirs}.weight", ("network", *ours, "kernel"), MATRIX))
        rules.append(Rule(f"{theirs}.bias", ("network", *ours, "bias"), SAME))
    return rules


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
