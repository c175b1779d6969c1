"""The config sections of towers: which one, of what sizes, used how. No JAX here: the config tree imports it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.towers.common.autoencoder.config import (
    KL16,
    KL16_TINY,
    VQ16,
    VQ16_TINY,
    KLConfig,
    VQConfig,
)
from unihetero_jax.towers.common.vit.config import PRESETS, Family, ViTConfig, ViTSection, check_vit

Kind = Literal["patch", "pixels", "dinov2", "siglip", "clip", "vq16", "kl16"]

VQ_PRESETS = {"vq16": VQ16, "vq16-tiny": VQ16_TINY}
KL_PRESETS = {"kl16": KL16, "kl16-tiny": KL16_TINY}

# With a preset, these say how it is used; all other fields of the section are what the preset fixes.
_VIT_USE = ("input_size", "layer", "class_token", "dtype", "param_dtype", "remat")
_VQ_USE = ("dtype",)
# Of a tower of our own the scale of its latents is measured when it has been trained.
_KL_USE = ("dtype", "latent_scale")


@dataclass(frozen=True)
class PatchConfig:
    """The ``patch`` tower: a linear map of raw patches, ``patch_size`` pixels a side.

    Pixels enter as (x / 255 − ``pixel_mean``) / ``pixel_std``. A patch's mean colour is multiplied by ``color_gain``,
    what is left of the patch without it by ``detail_gain``: the louder a part, the sooner it is learned.
    """

    patch_size: int = 16
    width: int = 192
    pixel_mean: float = 0.5
    pixel_std: float = 0.5
    detail_gain: float = 4.0
    color_gain: float = 4.0


@dataclass(frozen=True)
class DistortionConfig:
    """How features are distorted. ``rotation``: whether Q is there; ``translation``: whether b is.

    ``strength`` 0 is no distortion, without Q too. The defaults are otherwise what the paper's stored files hold: Q
    at every strength, and b = 0.
    """

    strength: float = 0.0
    rotation: bool = True
    translation: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TowerConfig:
    """Pixels to features.

    ``kind``: ``patch`` (trainable, linear), ``pixels`` (raw patches in [−1, 1], no parameters), a vision transformer
    (``dinov2``, ``siglip``, ``clip``), or an image autoencoder (``vq16``, ``kl16``). ``preset``: a published model by
    name, or its ``-tiny`` twin; empty: the sizes of the kind's own section, ``patch`` (``pixels`` reads its
    ``patch_size``), ``vit``, ``vq`` or ``kl``. With a preset that section only says how the tower is used.
    ``training``: ``auto`` trains ``patch`` and freezes the others. ``sample``: ``kl16`` draws its latents from their
    posterior in training, instead of taking the mean. ``capacity``: the share of a batch's image places that a tower
    other than ``patch`` has a buffer for; with 1 only batches that do not need the tower save anything.
    ``cached``: features come with the batch, computed before; the tower itself is not there.
    ``distortion``: of its features on the side it serves.
    """

    kind: Kind = "patch"
    preset: str = ""
    training: Literal["auto", "trained", "frozen"] = "auto"
    sample: bool = False
    capacity: float = 1.0
    cached: bool = False
    patch: PatchConfig = field(default_factory=PatchConfig)
    vit: ViTSection = field(default_factory=ViTSection)
    vq: VQConfig = field(default_factory=VQConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    distortion: DistortionConfig = field(default_factory=DistortionConfig)

    @property
    def frozen(self) -> bool:
        """Whether training leaves the tower as it is."""
        return self.training == "frozen" or (self.training == "auto" and self.kind != "patch")


def vit_config(config: TowerConfig, key: str) -> ViTConfig:
    """The vision transformer of a section.

    Args:
      config: of kind ``dinov2``, ``siglip`` or ``clip``.
      key: where the section is, such as ``config.model.understanding_tower``.

    Raises:
      UsageError: no such preset of that kind, or sizes beside a preset.
    """
    section = dataclasses.asdict(config.vit)
    if not config.preset:
        return ViTConfig(**section, family=cast("Family", config.kind))
    own = {name: preset for name, preset in PRESETS.items() if preset.family == config.kind}
    preset = _preset(config, own, config.vit, _VIT_USE, f"{key}.vit", key)
    use = {name: section[name] for name in _VIT_USE}
    return dataclasses.replace(preset, **{**use, "input_size": config.vit.input_size or preset.input_size})


def vq_config(config: TowerConfig, key: str) -> VQConfig:
    """The VQ autoencoder of a section; raises as ``vit_config``."""
    if not config.preset:
        return config.vq
    preset = _preset(config, VQ_PRESETS, config.vq, _VQ_USE, f"{key}.vq", key)
    return dataclasses.replace(preset, dtype=config.vq.dtype)


def kl_config(config: TowerConfig, key: str) -> KLConfig:
    """The KL autoencoder of a section; raises as ``vit_config``."""
    if not config.preset:
        return config.kl
    preset = _preset(config, KL_PRESETS, config.kl, _KL_USE, f"{key}.kl", key)
    return dataclasses.replace(preset, dtype=config.kl.dtype, latent_scale=config.kl.latent_scale)


def _preset(
    config: TowerConfig, known: dict[str, Any], section: Any, use: tuple[str, ...], where: str, key: str
) -> Any:
    if config.preset not in known:
        raise UsageError(
            f"{key}.preset={config.preset!r}: expected one of {', '.join(known)} with {key}.kind={config.kind!r}"
            f"{nearest(config.preset, known)}"
        )
    default = type(section)()
    for entry in dataclasses.fields(section):
        if entry.name not in use and getattr(section, entry.name) != getattr(default, entry.name):
            raise UsageError(
                f"{where}.{entry.name}={getattr(section, entry.name)!r} beside {key}.preset={config.preset!r}, which "
                f"fixes it; leave one of them out"
            )
    return known[config.preset]


def patch_count(image_size: int, side: int, key: str) -> int:
    """Patches of a square image.

    Raises:
      UsageError: the patch size does not divide the image size.
    """
    if image_size % side:
        raise UsageError(f"{key}.patch.patch_size={side} does not divide config.data.image_size={image_size}")
    return (image_size // side) ** 2


def tower_tokens(config: TowerConfig, image_size: int, key: str) -> int:
    """Visual tokens an image.

    Args:
      config: the section.
      image_size: pixels a side of the batch's images.
      key: where the section is.

    Raises:
      UsageError: the section does not describe a tower.
    """
    if config.kind in ("patch", "pixels"):
        return patch_count(image_size, config.patch.patch_size, key)
    if config.kind == "vq16":
        return vq_config(config, key).grid ** 2
    if config.kind == "kl16":
        return kl_config(config, key).grid ** 2
    return vit_config(config, key).tokens


def tower_width(config: TowerConfig, key: str) -> int:
    """Width of a feature; raises as ``tower_tokens``."""
    if config.kind == "patch":
        return config.patch.width
    if config.kind == "pixels":
        return config.patch.patch_size**2 * 3
    if config.kind == "vq16":
        return vq_config(config, key).code_width
    if config.kind == "kl16":
        return kl_config(config, key).latent
    return vit_config(config, key).width


def check_tower(config: TowerConfig, image_size: int, key: str) -> None:
    """Refuses a section that describes no tower.

    Raises:
      UsageError: naming the key and what would be right.
    """
    patch = config.patch
    used = {"patch": ("patch_size", "width", "pixel_std", "detail_gain", "color_gain"), "pixels": ("patch_size",)}
    for name in used.get(config.kind, ()):
        if not getattr(patch, name) > 0:
            raise UsageError(f"{key}.patch.{name}={getattr(patch, name)}: expected a value above 0")
    if not 0 <= patch.pixel_mean <= 1:
        raise UsageError(f"{key}.patch.pixel_mean={patch.pixel_mean}: expected a value from 0 to 1")
    tower_tokens(config, image_size, key)
    if config.kind in ("dinov2", "siglip", "clip"):
        check_vit(vit_config(config, key), f"{key}.vit")
    elif config.preset and config.kind in ("patch", "pixels"):
        raise UsageError(f"{key}.preset={config.preset!r}: {key}.kind={config.kind!r} has no presets; expected ''")
    if not 0 < config.capacity <= 1:
        raise UsageError(f"{key}.capacity={config.capacity}: expected a value above 0, up to 1")
    if config.sample and config.kind != "kl16":
        raise UsageError(f"{key}.sample=True: only kl16 has a posterior; {key}.kind is {config.kind!r}")
    if config.cached and config.kind in ("patch", "pixels"):
        raise UsageError(f"{key}.cached=True with kind={config.kind!r}: expected False; it costs less than reading")
    if config.cached and config.training == "trained":
        raise UsageError(f"{key}.cached=True with training='trained': features computed before do not learn")
    check_distortion(config.distortion, f"{key}.distortion")


def check_distortion(config: DistortionConfig, key: str) -> None:
    """Refuses a strength that makes no sense.

    Raises:
      UsageError: below 0, or so large that a direction may vanish (1 and above).
    """
    if not 0 <= config.strength < 1:
        raise UsageError(f"{key}.strength={config.strength}; expected at least 0 and below 1")
