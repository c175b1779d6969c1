"""The models of the two papers as configs: UniHetero, and paper B's pairings, at full size and as small twins.

Where a paper does not specify a value, the choice is ours and is marked so; see the configs that use these.
"""

from __future__ import annotations

from typing import Any, Literal

import ml_collections

from unihetero_jax.config import defaults

Tower = Literal["siglip", "clip", "vq16", "dinov2"]

# Paper B takes SigLIP's and CLIP's features one layer before the last.
_FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip": ("siglip-base-patch16-224", {"layer": -2}),
    "clip": ("clip-vit-large-patch14-336", {"layer": -2}),
    "vq16": ("vq16", {}),
    "dinov2": ("dinov2-large", {}),
}
# At full size vision transformers compute in bfloat16; the autoencoder stays as published.
_BFLOAT16 = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
_FULL_USE: dict[str, dict[str, Any]] = {"vq16": {}}


def pairing(understanding: Tower, generation: Tower, *, small: bool = False) -> ml_collections.ConfigDict:
    """Return paper B's model (arXiv 2505.23043): one tower for input images, one for target images.

    VQ: a linear adapter, a linear head over the codes, weight 0.2. SigLIP and CLIP: an MLP adapter, a linear head on
    the tower's features, 1 − cosine, weight 1. A tower on both sides shares its adapter.

    Args:
      understanding: the tower of input images.
      generation: the tower of target images.
      small: a twin that trains on a laptop.
    """
    config = defaults()
    model, losses = config.model, config.losses
    model.understanding_tower = _tower(understanding, small)
    _set_adapter(model.understanding_adapter, understanding)
    if understanding != generation:
        model.generation_tower = _tower(generation, small)
        model.generation_adapter = {}
        _set_adapter(model.generation_adapter, generation)
    losses.pixel.weight = 0.0
    if generation == "vq16":
        model.generation = "codes"
        losses.semantic.weight = 0.0
        losses.codes = {"weight": 0.2}
    else:
        losses.semantic.weight = 1.0
        losses.semantic.target = "encoder_output"
        losses.semantic.head = "linear"
    if small:
        _small(config)
        return config
    _seven_billion(config)
    clip = "clip" in (understanding, generation)
    config.data.image_size = 336 if clip else 224
    config.optimizer.weight_decay = 0.0
    if clip:
        # LLaVA-1.5's second stage: everything but the towers is trained.
        config.data.seq_len = 2048
        config.train.batch_size = 128
        config.train.steps = 6761
        config.optimizer.learning_rate = 2e-5
        config.optimizer.warmup_steps = 203
    else:
        # 112 rows of 1,024 slots hold about the paper's 393 samples.
        config.data.seq_len = 1024
        config.train.batch_size = 112
        config.train.steps = 458
        config.optimizer.learning_rate = 2e-4
        config.optimizer.groups.adapters.learning_rate_factor = 0.5
        config.optimizer.warmup_steps = 14
        model.lora.rank = 128
        config.optimizer.frozen_dtype = "bfloat16"
    return config


def llava15(generation: Literal["clip", "vq16"], stage: Literal[1, 2]) -> ml_collections.ConfigDict:
    """Return paper B's LLaVA-1.5 with generation: CLIP encodes, CLIP or VQ-16 is generated, with Vicuna-7B.

    Args:
      generation: the tower of target images.
      stage: 1 trains adapters and the visual head alone, 2 everything but the towers.
    """
    config = pairing("clip", generation)
    if stage == 1:
        config.optimizer.groups.decoder.frozen = True
        config.optimizer.groups.embeddings.frozen = True
        config.optimizer.frozen_dtype = "bfloat16"
        config.train.batch_size = 256
        config.train.steps = 2767
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_steps = 83
    # Eight GPUs hold two rows of 2,048 slots each at a time.
    config.train.accumulation = config.train.batch_size // 16
    return config


def unihetero(size: Literal["small", "1b", "7b"]) -> ml_collections.ConfigDict:
    """Return UniHetero (arXiv 2512.23512): DINOv2 semantics on the LLM's input embedding, KL-16 pixels behind it.

    One tower encodes images and is predicted, input images too. The paper specifies neither the tower's size nor the
    loss, its weight or the head: those are ours (cosine against stopped targets, MAR's diffusion MLP, detached).

    Args:
      size: of the decoder: Llama-2-7B's, TinyLlama-1.1B's, or a twin that trains on a laptop.
    """
    small = size == "small"
    config = defaults()
    model, losses = config.model, config.losses
    config.data.input_role = "both"
    model.understanding_tower = _tower("dinov2", small)
    model.pixel_tower = {"kind": "kl16", "preset": "kl16-tiny" if small else "kl16", "sample": True}
    losses.semantic.weight = 1.0
    losses.semantic.target = "input_embedding"
    losses.pixel = {"kind": "diffusion"}
    if small:
        _small(config)
        # As with small towers of one's own: latents of standard deviation 1.
        model.pixel_tower.latent_scale = 1.0
        # One latent for each target token.
        model.understanding_tower.preset = ""
        model.understanding_tower.image_size = 64
        model.understanding_tower.patch_size = 8
        model.understanding_tower.width = 64
        model.understanding_tower.layers = 3
        model.understanding_tower.heads = 4
        model.understanding_tower.mlp_width = 192
        losses.pixel.width = 64
        losses.pixel.depth = 2
        losses.pixel.draws = 1
        losses.pixel.steps = 25
        return config
    _seven_billion(config)
    if size == "1b":
        decoder = model.decoder
        decoder.width, decoder.layers, decoder.heads, decoder.kv_heads, decoder.mlp_width = 2048, 22, 32, 4, 5632
        # One row at a time on each of 64 v5e, eight on each of eight H100.
        config.train.accumulation = 4
    config.data.image_size = 256
    config.data.seq_len = 2048
    config.train.batch_size = 512 if size == "7b" else 256
    # 80M image-text pairs, three times: 240M samples of 256 visual and some 64 text tokens, 6.4 in a row.
    config.train.steps = round(240e6 / (6.4 * config.train.batch_size))
    config.optimizer.learning_rate = 1e-4 if size == "7b" else 3e-4
    config.optimizer.warmup_steps = 2000
    config.optimizer.weight_decay = 0.1
    # The sizes of MAR-L's head.
    losses.pixel.depth = 8
    losses.pixel.width = 1280
    losses.pixel.dtype = "bfloat16"
    return config


def _tower(kind: Tower, small: bool) -> dict[str, Any]:
    preset, use = _FULL[kind]
    if small:
        return {"kind": kind, "preset": f"{kind}-tiny", **use}
    return {"kind": kind, "preset": preset, **use, **_FULL_USE.get(kind, _BFLOAT16)}


def _set_adapter(section: Any, kind: Tower) -> None:
    section.kind = "linear" if kind == "vq16" else "mlp"
    # What is predicted by direction alone must enter the adapter by direction alone.
    section.normalize_input = kind != "vq16"


def _seven_billion(config: ml_collections.ConfigDict) -> None:
    """Set the decoder of Llama-2-7B and Vicuna-7B-v1.5, to be started from with ``config.init``."""
    decoder = config.model.decoder
    decoder.width, decoder.layers, decoder.heads, decoder.kv_heads, decoder.mlp_width = 4096, 32, 32, 32, 11_008
    decoder.norm_epsilon = 1e-5
    decoder.tie_embeddings = False
    decoder.embedding_scale = 0.02
    decoder.logit_scale = 1.0
    decoder.remat = "dots"
    config.data.images_per_row = 8
    config.losses.text.chunk = 256


def _small(config: ml_collections.ConfigDict) -> None:
    decoder = config.model.decoder
    decoder.width, decoder.layers, decoder.heads, decoder.kv_heads, decoder.mlp_width = 64, 2, 4, 4, 192
    decoder.dtype = "float32"
    decoder.tie_embeddings = False
    decoder.logit_scale = 1.0
    config.data.image_size = 64
    config.data.seq_len = 192
    config.data.images_per_row = 2
    config.train.batch_size = 8
    config.train.steps = 200
    config.evaluate.questions = 60
    config.evaluate.images = 16
    config.evaluate.batch_size = 16
