"""Image autoencoders in torch's layout → ours.

Their convolutions are [out, in, height, width], the 1 × 1 ones too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from flax import nnx
from jax.sharding import Mesh

from unihetero_jax.config.components import TOWER_WEIGHTS, TOWERS
from unihetero_jax.errors import UsageError
from unihetero_jax.parallel.definition import ModelDefinition, define_module
from unihetero_jax.towers.common.autoencoder.config import AutoencoderConfig
from unihetero_jax.weights.fill import fill_module
from unihetero_jax.weights.layouts import CONVOLUTION, POINTWISE, SAME, Rule
from unihetero_jax.weights.tensors import GivenTensors, Stored, TensorFiles, parameter_dtype

log = logging.getLogger(__name__)

_FIRST = "encoder.conv_in.weight"

# What a training run keeps beside the autoencoder; `codebook_used` is LlamaGen's record of recent codes.
_BESIDE = re.compile(r"(^|\.)(loss|discriminator|optimizer|optimizer_disc)\.|(^|\.)quantize\.codebook_used$")


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_PARTS = {"query": "q", "key": "k", "value": "v", "output": "proj_out", "shortcut": "nin_shortcut"}


# Reads the shape of a tensor, which must have so many dimensions.
Shape = Callable[[str, int], tuple[int, ...]]


class AutoencoderWeights:
    """How one publisher names the parameters; a subclass is registered in ``TOWER_WEIGHTS``.

    Attributes:
      kind: of the tower.
      encoder_level: what an encoder's level is called.
      decoder_level: what a decoder's level is called.
      smallest_first: whether the decoder's levels are numbered from the smallest grid, as ours, or from the largest.
      block: what a residual block is called.
      middle: names of the middle's first block, attention and second block.
    """

    kind: ClassVar[str]
    encoder_level: ClassVar[str]
    decoder_level: ClassVar[str]
    smallest_first: ClassVar[bool]
    block: ClassVar[str]
    middle: ClassVar[tuple[str, str, str]]

    @classmethod
    def config(cls, sizes: Mapping[str, Any], shape: Shape) -> AutoencoderConfig:
        """Return the config of the autoencoder.

        Args:
          sizes: what all autoencoders have.
          shape: reads the shape of a tensor.
        """
        raise NotImplementedError

    @staticmethod
    def options(section: Any) -> dict[str, Any]:
        """Return what a tower's section defines and no shape does, as options of ``from_state_dict``."""
        return {"image_size": section.image_size, "groups": section.groups}

    @classmethod
    def from_state_dict(
        cls,
        arrays: Mapping[str, Any] | TensorFiles,
        *,
        image_size: int = 256,
        groups: int = 32,
        dtype: str = "float32",
        mesh: Mesh | None = None,
    ) -> Any:
        """Build the autoencoder with these parameters, float32.

        Its sizes are read off the shapes. Names may carry a prefix (``ema.``, ``model.``, ``module.`` …; of several
        copies, the moving average is taken). A discriminator and other parts of a training run are left aside; the log
        names them.

        Args:
          arrays: by torch name; or files, of which one tensor after another is read.
          image_size: pixels per side that the tower resizes to, which no shape tells.
          groups: of the group norms, which no shape tells either; the published models have 32.
          dtype: of the activations, ``float32`` or ``bfloat16``.
          mesh: over which the parameters are sharded; by default they go to one device.

        Raises:
          UsageError: an unknown dtype; or, by name, what is missing, left over or has another shape.
        """
        settings = {"image_size": image_size, "groups": groups, "dtype": parameter_dtype(dtype).name}
        files = arrays if isinstance(arrays, TensorFiles) else GivenTensors(cls.kind, arrays)
        prefix = _prefix(cls.kind, files.names)
        copies = tuple(_prefixes(files.names))
        others = [name for name in files.names if name.startswith(copies) and not name.startswith(prefix)]
        aside = {name for name in files.names if _BESIDE.search(name)}.union(others)
        named = {name.removeprefix(prefix): stored for name, stored in files.names.items() if name not in aside}
        if aside:
            log.info("%s: not used: %s", cls.kind, ", ".join(sorted(aside)))
        config = _config(cls, named, prefix, settings)
        definition = define_module(lambda rngs: TOWERS.find(cls.kind)(config, rngs=rngs))
        rules = _rules(cls, definition)
        return fill_module(
            definition, rules, files, lambda name: None if name in aside else name.removeprefix(prefix), mesh
        )


def _rules(family: type[AutoencoderWeights], definition: ModelDefinition[Any]) -> list[Rule]:
    """The name map."""
    parameters: list[tuple[tuple[Any, ...], nnx.Param]] = list(nnx.to_flat_state(definition.abstract))
    levels = 1 + max(path[2] for path, _ in parameters if path[:2] == ("encoder", "levels"))
    layouts = {4: CONVOLUTION, 2: POINTWISE, 1: SAME}
    return [
        Rule(
            _published(family, path, levels),
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


def _config(
    family: type[AutoencoderWeights], arrays: Mapping[str, Stored], prefix: str, settings: Mapping[str, Any]
) -> AutoencoderConfig:
    """Read the config off the shapes."""
    kind = family.kind

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in arrays:
            raise UsageError(f"{kind}: missing {prefix}{name}{_hint(kind, arrays)}")
        found = arrays[name].shape
        if len(found) != dimensions:
            raise UsageError(f"{kind}: {prefix}{name} has shape {found}; expected {dimensions} dimensions")
        return found

    def numbers(pattern: str) -> set[int]:
        return {int(found[1]) for name in arrays if (found := re.match(pattern, name))}

    channels = shape(_FIRST, 4)[0]
    encoder = rf"encoder\.{family.encoder_level}\."
    levels = max(numbers(rf"{encoder}(\d+)\."), default=0) + 1
    widths = [
        shape(f"encoder.{family.encoder_level}.{level}.{family.block}.0.conv1.weight", 4)[0] for level in range(levels)
    ]
    if odd := next((width for width in widths if width % channels), None):
        raise UsageError(f"{kind}: a level of {odd} channels is not a multiple of the first layer's {channels}")
    attending = numbers(rf"decoder\.{family.decoder_level}\.(\d+)\.attn\.")
    sizes: dict[str, Any] = {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "blocks": max(numbers(rf"{encoder}0\.{family.block}\.(\d+)\.")) + 1,
        "encoder_attention": tuple(sorted(numbers(rf"{encoder}(\d+)\.attn\."))),
        "decoder_attention": tuple(
            sorted(levels - 1 - level if family.smallest_first else level for level in attending)
        ),
        **settings,
    }
    return family.config(sizes, shape)


def _hint(kind: str, arrays: Mapping[str, Stored]) -> str:
    """Return a hint at the kind whose parameters they seem to be, if it is not ``kind``."""
    for other, section in TOWERS.sections().items():
        if other != kind and section.has_state_dict:
            level = getattr(TOWER_WEIGHTS.find(other), "encoder_level", "")
            if level and any(name.startswith(f"encoder.{level}.") for name in arrays):
                return f"; these look like {other!r}"
    return ""


def _published(family: type[AutoencoderWeights], path: tuple[Any, ...], levels: int) -> str:
    """Their name of the parameter at one of our paths."""
    if path == ("codebook",):
        return "quantize.embedding.weight"
    side, *inner, leaf = path
    parts: list[str] = [str(side)]
    if inner[:1] == ["levels"]:
        number, group, *inner = inner[1:]
        if side == "encoder":
            parts += [family.encoder_level, str(number)]
        else:
            parts += [family.decoder_level, str(number if family.smallest_first else levels - 1 - number)]
        resample = "downsample" if side == "encoder" else "upsample"
        parts.append({"blocks": family.block, "attention": "attn", "resample": resample}[group])
    elif inner[:1] == ["middle"]:
        parts.append(dict(zip(("first", "attention", "second"), family.middle, strict=True))[inner[1]])
        inner = inner[2:]
    return ".".join([*parts, *(_PARTS.get(part, str(part)) for part in inner), _LEAVES[leaf]])
