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
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.towers.autoencoder_config import KLConfig, VQConfig
from unihetero_jax.towers.kl16 import KL16
from unihetero_jax.towers.vq16 import VQ16

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
    arrays: Mapping[str, Any],
    *,
    image_size: int = 256,
    groups: int = 32,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> VQ16 | KL16:
    """The autoencoder with these parameters, float32.

    Its sizes are read off the shapes. Names may carry a prefix (``ema.``, ``model.``, ``module.`` …; of several copies,
    the moving average is taken). A discriminator and other parts of a training run are left aside; the log names them.

    Args:
      kind: ``vq16`` or ``kl16``.
      arrays: by torch name.
      image_size: pixels a side that the tower resizes to, which no shape tells.
      groups: of the group norms, which no shape tells either; the published models have 32.
      dtype: of the activations.

    Raises:
      UsageError: an unknown kind; or, by name, what is missing, left over or has another shape.
    """
    if kind not in _FAMILIES:
        raise UsageError(f"unknown autoencoder {kind!r}{nearest(kind, _FAMILIES)}; expected {' or '.join(_FAMILIES)}")
    prefix = _prefix(kind, arrays)
    copies = tuple(_prefixes(arrays))
    others = [name for name in arrays if name.startswith(copies) and not name.startswith(prefix)]
    aside = {name for name in arrays if _BESIDE.search(name)}.union(others)
    named = {name.removeprefix(prefix): arrays[name] for name in arrays.keys() - aside}
    if aside:
        log.info("%s: not used: %s", kind, ", ".join(sorted(aside)))
    settings = {"image_size": image_size, "groups": groups, "dtype": dtype}
    model = nnx.eval_shape(lambda: _create(kind, named, prefix, settings))
    _fill(kind, model, named, prefix)
    return model


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


def _create(kind: str, arrays: Mapping[str, Any], prefix: str, settings: dict[str, Any]) -> VQ16 | KL16:
    """A model of the sizes that the shapes tell."""
    names = _FAMILIES[kind]

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in arrays:
            other = next(other for other in _FAMILIES if other != kind)
            theirs = f"encoder.{_FAMILIES[other].encoder_level}."
            hint = f"; these look like {other!r}" if any(key.startswith(theirs) for key in arrays) else ""
            raise UsageError(f"{kind}: missing {prefix}{name}{hint}")
        found = tuple(arrays[name].shape)
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
        return VQ16(VQConfig(**sizes, hidden=hidden, code_width=code_width, codes=codes), rngs=nnx.Rngs(0))
    return KL16(KLConfig(**sizes, latent=shape("post_quant_conv.weight", 4)[0]), rngs=nnx.Rngs(0))


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


def _fill(kind: str, model: VQ16 | KL16, arrays: Mapping[str, Any], prefix: str) -> None:
    """Puts every array in its place."""
    params = {
        _published(_FAMILIES[kind], path, model.config.levels): variable
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    missing, left = sorted(params.keys() - arrays.keys()), sorted(arrays.keys() - params.keys())
    if missing or left:
        complaints = (("missing", missing), ("unknown", left))
        listed = [f"{words} {', '.join(prefix + name for name in names)}" for words, names in complaints if names]
        raise UsageError(f"{kind}: {'; '.join(listed)}")
    for name, variable in params.items():
        ours = variable.get_value().shape
        theirs = np.asarray(arrays[name]).astype(np.float32)
        expected = {4: (ours[-1:] + ours[-2:-1] + ours[:2]), 2: (*ours[::-1], 1, 1), 1: ours}[len(ours)]
        if name == "quantize.embedding.weight":
            expected = ours
        if theirs.shape != expected:
            raise UsageError(f"{kind}: {prefix}{name} has shape {theirs.shape}; expected {expected}")
        if theirs.ndim == 4:
            theirs = theirs.transpose(2, 3, 1, 0)
        variable.set_value(jnp.asarray(theirs.reshape(ours)))
