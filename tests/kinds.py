"""What a drawn slot may be: changes of the tiny config for each; 16 visual tokens a picture, whatever they are."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from unihetero_jax.model.trained_model import Trained

TOKENS = 16
# With tied embeddings a random model repeats its last token, a marker; one without says something.
UNTIED = {"model.decoder.tie_embeddings": False}
TINY_VQ = {
    "image_size": 32,
    "channels": 8,
    "multipliers": (1, 1, 1, 1),
    "blocks": 1,
    "groups": 4,
    "hidden": 8,
    "codes": 50,
    "encoder_attention": (),
    "decoder_attention": (),
}
CODES = {
    "model.generation": "codes",
    "model.generation_tower.kind": "vq16",
    **{f"model.generation_tower.{name}": value for name, value in TINY_VQ.items()},
    "losses.semantic.weight": 0.0,
    "losses.codes.weight": 1.0,
    "losses.pixel.weight": 0.0,
}
# Guided more from token to token.
DIFFUSION = {"width": 16, "depth": 1, "steps": 2, "objective": "flow", "guidance_schedule": "linear"}
LATENTS = {
    "model.generation": "latents",
    "model.generation_tower.kind": "pixels",
    "model.generation_tower.patch_size": 8,
    "losses.semantic.weight": 0.0,
    "losses.pixel.kind": "diffusion",
    **{f"losses.pixel.{name}": value for name, value in DIFFUSION.items()},
}
REGRESSION = {key: value for key, value in LATENTS.items() if not key.startswith("losses.pixel.")}
REGRESSION["losses.pixel.width"] = DIFFUSION["width"]
KINDS = {"semantic": {}, "codes": CODES, "latents": LATENTS, "regression": REGRESSION}


def shaken(trained: Trained) -> Trained:
    """With random numbers in a pixel head: a diffusion head's output starts at zero, whatever it is given."""
    if "pixel_head" not in trained.params:
        return trained
    chance = np.random.default_rng(1)

    def draw(leaf: jax.Array) -> jax.Array:
        return jax.device_put(jnp.asarray(chance.normal(0, 0.3, leaf.shape), leaf.dtype), leaf.sharding)

    head = jax.tree.map(draw, trained.params["pixel_head"])
    return replace(trained, params={**trained.params, "pixel_head": head})
