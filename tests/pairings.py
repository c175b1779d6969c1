"""The papers' models with sizes that compile in seconds, and a batch in which one image is shown and one is drawn."""

import functools

import numpy as np
from packed import random_batch

from unihetero_jax.config import Config, defaults, presets, resolve, visual_tokens
from unihetero_jax.config.tree import nested
from unihetero_jax.model.vision import BOTH, INPUT, TARGET

TWINS = {
    "siglip_siglip": lambda: presets.pairing("siglip", "siglip", small=True),
    "siglip_vq": lambda: presets.pairing("siglip", "vq16", small=True),
    "vq_siglip": lambda: presets.pairing("vq16", "siglip", small=True),
    "vq_vq": lambda: presets.pairing("vq16", "vq16", small=True),
    "clip_clip": lambda: presets.pairing("clip", "clip", small=True),
    "clip_vq": lambda: presets.pairing("clip", "vq16", small=True),
    "unihetero": lambda: presets.unihetero("small"),
    "latents": lambda: latents(),
    "dit": lambda: dit(),
}
# Smaller still: what is tested here does not depend on sizes.
TINY = {
    "data.image_size": 16,
    "data.images_per_row": 2,
    "train.batch_size": 8,
    "model.decoder.width": 32,
    "model.decoder.layers": 1,
    "model.decoder.mlp_width": 32,
}
VIT = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "heads": 2, "mlp_width": 32}
AUTOENCODER = {"image_size": 16, "channels": 8, "multipliers": (1, 1, 1, 1), "blocks": 1, "groups": 4}
AUTOENCODER |= {"encoder_attention": (), "decoder_attention": ()}
SIZES = {
    **dict.fromkeys(("siglip", "clip", "dinov2"), VIT),
    "vq16": {**AUTOENCODER, "hidden": 8, "codes": 32},
    "kl16": {**AUTOENCODER, "latent": 4},
}


def latents():
    """The hybrid arm: raw pixels are drawn by flow matching and read back, and the decoder learns from it."""
    config = defaults()
    config.model.decoder.heads = config.model.decoder.kv_heads = 4
    config.model.decoder.dtype = "float32"
    config.model.generation = "latents"
    config.model.generation_tower = {"kind": "pixels"}
    config.losses.semantic.weight = 0.0
    config.losses.pixel.kind = "diffusion"
    config.losses.pixel.gradient_to_decoder = 1.0
    config.losses.pixel.objective = "flow"
    config.model.understanding_tower.patch_size = config.model.generation_tower.patch_size = 8
    return config


def dit():
    config = defaults()
    config.model.decoder.heads = config.model.decoder.kv_heads = 4
    config.model.decoder.dtype = "float32"
    config.model.understanding_tower.patch_size = 8
    config.losses.pixel.kind = "diffusion"
    config.losses.pixel.gradient_to_decoder = 0.5
    config.losses.pixel.network = "dit"
    return config


@functools.cache
def configure(name: str, **changes) -> Config:
    values = TWINS[name]()
    values.update_from_flattened_dict(TINY)
    for tower in ("understanding_tower", "generation_tower", "pixel_tower"):
        section = values.model[tower]
        if section is not None and section.kind in SIZES:
            section.preset = ""
            section.update(SIZES[section.kind])
    sizes = {"width": 16, "depth": 1, "heads": 2, "draws": 2, "steps": 3}
    pixel = values.losses.pixel
    pixel.update({name: size for name, size in sizes.items() if name in pixel})
    shown, drawn = 4, 4
    values.data.seq_len = 8 + shown + drawn
    _update(values, nested({key.replace("__", "."): value for key, value in changes.items()}))
    return resolve(values)


def _update(values, changes) -> None:
    """Changes, also within sections that are not there yet."""
    for name, value in changes.items():
        if isinstance(value, dict) and values[name] is not None:
            _update(values[name], value)
        else:
            values[name] = value


def two_images(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Each row: words, an image that is shown, words, an image that is drawn, words."""
    batch = random_batch(config, seed)
    shown, drawn = visual_tokens(config)
    rows, slots = batch["tokens"].shape
    image, patch = np.full((rows, slots), -1, np.int32), np.full((rows, slots), -1, np.int32)
    for number, (first, count) in enumerate(((3, shown), (5 + shown, drawn))):
        image[:, first : first + count] = number
        patch[:, first : first + count] = np.arange(count)
    both = config.data.input_role == "both"
    batch["role"] = np.tile(np.asarray([BOTH if both else INPUT, TARGET], np.int8), (rows, 1))
    drawn_slots = (image == 1) | ((image == 0) & both)
    return batch | {
        "image": image,
        "patch": patch,
        "text_weight": (image < 0).astype(np.float32),
        "visual_weight": drawn_slots.astype(np.float32),
    }
