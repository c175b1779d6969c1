"""LlamaGen's VQ-16 and MAR's KL-16 in torch's layout → ours.

Their names (github.com/FoundationVision/LlamaGen, ``tokenizer/tokenizer_image/vq_model.py``; github.com/LTH14/mar,
``models/vae.py``): convolutions are [out, in, height, width], the 1 × 1 ones too. LlamaGen numbers the decoder's levels
from the smallest grid, as we do, MAR from the largest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.parallel.definition import ModelDefinition, define_module
from unihetero_jax.towers.common.autoencoder.config import KLConfig, VQConfig
from unihetero_jax.towers.kl16.network import KL16
from unihetero_jax.towers.vq16.network import VQ16
from unihetero_jax.weights.fill import fill_module
from unihetero_jax.weights.layouts import CONVOLUTION, POINTWISE, SAME, Rule
from unihetero_jax.weights.tensors import GivenTensors, Stored, TensorFiles, parameter_dtype

log = logging.getLogger(__name__)

_FIRST = "encoder.conv_in.weight"

# What a training run keeps beside the autoencoder; `codebook_used` is LlamaGen's record of recent codes.
_BESIDE = re.compile(r"(^|\.)(loss|discriminator|optimizer|optimizer_disc)\.|(^|\.)quantize\.codebook_used$")


@dataclass(frozen=True)
class _Names:
    """How one family names what both have; ``middle`` is first block, attention, second block."""

    encoder_level: str
    decoder_level: str
    smallest_first: bool
    block: str
    middle: tuple[str, str, str]


_FAMILIES = {
    "vq16": _Names("conv_blocks", "conv_blocks", True, "res", ("mid.0", "mid.1", "mid.2")),
    "kl16": _Names("down", "up", False, "block", ("mid.block_1", "mid.attn_1", "mid.block_2")),
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_PARTS = {"query": "q", "key": "k", "value": "v", "output": "proj_out", "shortcut": "nin_shortcut"}


def from_state_dict(
    kind: str,
    arrays: Mapping[str, Any] | TensorFiles,
    *,
    image_size: int = 256,
    groups: int = 32,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> VQ16 | KL16:
    """The autoencoder with these parameters, float32.

    Its sizes are read off the shapes. Names may carry a prefix (``ema.``, ``model.``, ``module.`` …; of several copies,
    the moving average is taken). A discriminator and other parts of a training run are left aside; the log names them.

    Args:
      kind: ``vq16`` or ``kl16``.
      arrays: by torch name; or files, of which one tensor after another is read.
      image_size: pixels per side that the tower resizes to, which no shape tells.
      groups: of the group norms, which no shape tells either; the published models have 32.
      dtype: of the activations, ``float32`` or ``bfloat16``.
      mesh: over which the parameters are sharded; by default they go to one device.

    Raises:
      UsageError: an unknown kind or dtype; or, by name, what is missing, left over or has another shape.
    """
    if kind not in _FAMILIES:
        raise UsageError(f"unknown autoencoder {kind!r}{nearest(kind, _FAMILIES)}; expected {' or '.join(_FAMILIES)}")
    settings = {"image_size": image_size, "groups": groups, "dtype": parameter_dtype(dtype).name}
    files = arrays if isinstance(arrays, TensorFiles) else GivenTensors(kind, arrays)
    prefix = _prefix(kind, files.names)
    copies = tuple(_prefixes(files.names))
    others = [name for name in files.names if name.startswith(copies) and not name.startswith(prefix)]
    aside = {name for name in files.names if _BESIDE.search(name)}.union(others)
    named = {name.removeprefix(prefix): stored for name, stored in files.names.items() if name not in aside}
    if aside:
        log.info("%s: not used: %s", kind, ", ".join(sorted(aside)))
    definition = _define(kind, named, prefix, settings)
    rules = _rules(_FAMILIES[kind], definition)
    return fill_module(
        definition, rules, files, lambda name: None if name in aside else name.removeprefix(prefix), mesh
    )


def _rules(names: _Names, definition: ModelDefinition[VQ16 | KL16]) -> list[Rule]:
    """The name map."""
    parameters: list[tuple[tuple[Any, ...], nnx.Param]] = list(nnx.to_flat_state(definition.abstract))
    levels = 1 + max(path[2] for path, _ in parameters if path[:2] == ("encoder", "levels"))
    layouts = {4: CONVOLUTION, 2: POINTWISE, 1: SAME}
    return [
        Rule(
            _published(names, path, levels),
            path,
            SAME if path == ("codebook",) else layouts[len(variable.get_value().shape)],
        )
        for path, variable in parameters
    ]


def _prefixes(arrays: Mapping[str, Any]) -> list[str]:
    """Of each copy of the model in the arrays, the moving average's first."""
    found = [name.removesuffix(_FIRST) for name in arrays if name == _FIRST or name.endswith("." + _FIRST)]
    return sorted(found, key=lambda prefix: ("ema" not in prefix.split("."), len(prefix)))


def _prefix(kind: str, arrays: Mapping[str, Any]) -> str:
    prefixes = _prefixes(arrays)
    if not prefixes:
        raise UsageError(
            f"{kind}: no {_FIRST} among the parameters, with any prefix; found {', '.join(sorted(arrays))}"
        )
    return prefixes[0]


def _define(
    kind: str, arrays: Mapping[str, Stored], prefix: str, settings: dict[str, Any]
) -> ModelDefinition[VQ16 | KL16]:
    """A model of the sizes that the shapes tell."""
    names = _FAMILIES[kind]

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in arrays:
            other = next(other for other in _FAMILIES if other != kind)
            theirs = f"encoder.{_FAMILIES[other].encoder_level}."
            hint = f"; these look like {other!r}" if any(key.startswith(theirs) for key in arrays) else ""
            raise UsageError(f"{kind}: missing {prefix}{name}{hint}")
        found = arrays[name].shape
        if len(found) != dimensions:
            raise UsageError(f"{kind}: {prefix}{name} has shape {found}; expected {dimensions} dimensions")
        return found

    def numbers(pattern: str) -> set[int]:
        return {int(found[1]) for name in arrays if (found := re.match(pattern, name))}

    channels = shape(_FIRST, 4)[0]
    encoder = rf"encoder\.{names.encoder_level}\."
    levels = max(numbers(rf"{encoder}(\d+)\."), default=0) + 1
    widths = [
        shape(f"encoder.{names.encoder_level}.{level}.{names.block}.0.conv1.weight", 4)[0] for level in range(levels)
    ]
    if odd := next((width for width in widths if width % channels), None):
        raise UsageError(f"{kind}: a level of {odd} channels is not a multiple of the first layer's {channels}")
    attending = numbers(rf"decoder\.{names.decoder_level}\.(\d+)\.attn\.")
    sizes: dict[str, Any] = {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "blocks": max(numbers(rf"{encoder}0\.{names.block}\.(\d+)\.")) + 1,
        "encoder_attention": tuple(sorted(numbers(rf"{encoder}(\d+)\.attn\."))),
        "decoder_attention": tuple(
            sorted(levels - 1 - level if names.smallest_first else level for level in attending)
        ),
        **settings,
    }
    if kind == "vq16":
        codes, code_width = shape("quantize.embedding.weight", 2)
        hidden = shape("encoder.conv_out.weight", 4)[0]
        vq = VQConfig(**sizes, hidden=hidden, code_width=code_width, codes=codes)
        return define_module(lambda rngs: VQ16(vq, rngs=rngs))
    kl = KLConfig(**sizes, latent=shape("post_quant_conv.weight", 4)[0])
    return define_module(lambda rngs: KL16(kl, rngs=rngs))


def _published(names: _Names, path: tuple[Any, ...], levels: int) -> str:
    """Their name of the parameter at one of our paths."""
    if path == ("codebook",):
        return "quantize.embedding.weight"
    side, *inner, leaf = path
    parts: list[str] = [str(side)]
    if inner[:1] == ["levels"]:
        number, group, *inner = inner[1:]
        if side == "encoder":
            parts += [names.encoder_level, str(number)]
        else:
            parts += [names.decoder_level, str(number if names.smallest_first else levels - 1 - number)]
        resample = "downsample" if side == "encoder" else "upsample"
        parts.append({"blocks": names.block, "attention": "attn", "resample": resample}[group])
    elif inner[:1] == ["middle"]:
        parts.append(dict(zip(("first", "attention", "second"), names.middle, strict=True))[inner[1]])
        inner = inner[2:]
    return ".".join([*parts, *(_PARTS.get(part, str(part)) for part in inner), _LEAVES[leaf]])
