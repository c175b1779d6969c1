"""FLOPs of a train step by our own count.

A product of [m, k] and [k, n] is 2·m·k·n. Norms, softmax, activations and the optimiser are left out, as everybody does
(PaLM, arXiv 2204.02311, appendix B). Causal attention is counted once: a slot reads half of its row on average. Towers
run on every image place of a batch, filled or not.

    forward  = B·(T·linears + 2·T·T·H·C·layers + T·head) + B·K·(towers + adapters) + B·M·heads
    a step   = Σ parts forward · (1 + backward)

``backward`` is 2 for what is trained (gradients of weights and of inputs), 1 where one of the two is not needed, 0 for
what is frozen with nothing trained in front of it. B rows, T slots, K images a row, M = K·N visual tokens a row.
"""

from __future__ import annotations

from unihetero_jax.config import (
    TOWERS,
    AdapterConfig,
    Config,
    DecoderConfig,
    frozen_groups,
    frozen_towers,
    pixel_tower,
    table_rows,
    target_tower,
    towers_in_use,
    visual_tokens,
)
from unihetero_jax.config.components import Part as Part
from unihetero_jax.model.attention.base import find
from unihetero_jax.towers.common.autoencoder.config import AutoencoderConfig
from unihetero_jax.towers.common.vit.config import ViTConfig
from unihetero_jax.towers.sections import TowerConfig, kl_config, tower_width, vit_config, vq_config

FORMULA = "Σ over parts of forward · (1 + backward); a product is 2·m·k·n, causal attention counted once"


def step_parts(config: Config, vocabulary: int, attention: str = "xla", context: int = 1) -> list[Part]:
    """What a step of a config consists of, over the global batch.

    Args:
      config: of the run.
      vocabulary: token ids.
      attention: the decoder's implementation of it; changes what is done, not what counts.
      context: devices that a row is split over.
    """
    model, decoder = config.model, config.model.decoder
    rows, slots = config.train.batch_size, config.data.slots
    places = rows * config.data.images_per_row
    frozen = frozen_groups(config)
    lora = bool(model.lora.rank)
    trained = 2.0 if "decoder" not in frozen else 1.0
    again = {"none": (0.0, 0.0), "dots": (0.0, 1.0), "full": (1.0, 1.0)}[decoder.remat]
    tokens = rows * slots
    parts = [
        Part("decoder linears", tokens * decoder_linears(decoder), trained, again[0]),
        find(attention).work(config, tokens * decoder_attention(decoder, slots), again, context),
    ]
    if lora:
        parts.append(Part("LoRA", tokens * _lora(config), 2.0, again[0]))
    parts += _tower_parts(config, places)
    rows_of_table = table_rows(vocabulary)
    for section in config.losses.values():
        parts += section.work(config, rows_of_table, "embeddings" not in frozen)
    return parts


def decoder_linears(config: DecoderConfig) -> float:
    """Forward FLOPs a token of the decoder's matrices, without embeddings and head."""
    width, head = config.width, config.head_dim
    attention = width * head * (2 * config.heads + 2 * config.kv_heads)
    return 2.0 * config.layers * (attention + 3 * width * config.mlp_width)


def decoder_attention(config: DecoderConfig, slots: int) -> float:
    """Forward FLOPs a token of scores and mixing: 2 products of 2·H·C over half of the row."""
    return 2.0 * config.layers * config.heads * config.head_dim * slots


def vit(config: ViTConfig) -> float:
    """Forward FLOPs an image of a vision transformer, up to the layer that is read."""
    patches = (config.side // config.patch_size) ** 2
    tokens = patches + config.registers + int(config.family != "siglip")
    width, depth = config.width, config.layers + config.layer + 1
    matrices = 4 * width**2 + (3 if config.swiglu else 2) * width * config.mlp_width
    block = 2.0 * tokens * matrices + 4.0 * tokens**2 * width
    return depth * block + 2.0 * patches * config.patch_size**2 * 3 * width


def encoder(config: AutoencoderConfig, projected: int) -> float:
    """Forward FLOPs an image of a convolutional encoder: 3x3 convolutions, and attention over the smallest grids.

    Args:
      config: of the autoencoder.
      projected: channels that the last convolution gives.
    """
    side = config.image_size // config.stem
    widths = config.widths()
    total = 2.0 * _meetings(side) * (3 * config.stem**2) * config.channels
    here = config.channels
    for level, width in enumerate(widths):
        for _ in range(config.blocks):
            total += _residual(side, here, width)
            here = width
            if level in config.encoder_attention:
                total += _grid_attention(side, here)
        if level < config.levels - 1:
            side //= 2
            # Padded on one side alone.
            total += 2.0 * (3 * side - 1) ** 2 * here**2
    total += 2 * _residual(side, here, here) + _grid_attention(side, here)
    return total + 2.0 * _meetings(side) * here * projected


def tower(config: TowerConfig, image_size: int, key: str) -> float:
    """Forward FLOPs an image of the tower of a section."""
    if config.cached or config.kind == "pixels":
        return 0.0
    if config.kind == "patch":
        side = config.patch.patch_size
        return 2.0 * (image_size // side) ** 2 * side**2 * 3 * config.patch.width
    if config.kind == "vq16":
        vq = vq_config(config, key)
        codes = 2.0 * vq.grid**2 * vq.code_width * vq.codes
        return encoder(vq, vq.hidden) + 2.0 * vq.grid**2 * vq.hidden * vq.code_width + codes
    if config.kind == "kl16":
        kl = kl_config(config, key)
        return encoder(kl, 2 * kl.latent) + 2.0 * kl.grid**2 * (2 * kl.latent) ** 2
    return vit(vit_config(config, key))


def _residual(side: int, size_in: int, size_out: int) -> float:
    skip = size_in * size_out if size_in != size_out else 0
    return 2.0 * (_meetings(side) * (size_in + size_out) * size_out + side**2 * skip)


def _meetings(side: int) -> int:
    """Places where a 3x3 kernel meets a grid that is padded by one: the padding's products are not computed."""
    return (3 * side - 2) ** 2


def _grid_attention(side: int, channels: int) -> float:
    return 8.0 * side**2 * channels**2 + 4.0 * side**4 * channels


def _lora(config: Config) -> float:
    """Forward FLOPs a token of factors beside every linear of the decoder."""
    decoder, rank = config.model.decoder, config.model.lora.rank
    width, heads, groups = decoder.width, decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    ends = (width + heads) * 2 + (width + groups) * 2 + 3 * (width + decoder.mlp_width)
    return 2.0 * decoder.layers * rank * ends


def _tower_parts(config: Config, places: int) -> list[Part]:
    model, size = config.model, config.data.image_size
    still = frozen_towers(config)
    parts = []
    for name in (name for name in TOWERS if name in towers_in_use(config)):
        section = pixel_tower(config) if name == "pixel_tower" else getattr(model, name)
        # A tower has nothing trained in front of it: of its first product only the weights' gradient is needed.
        backward = 0.0 if name in still else (1.0 if section.kind == "patch" else 2.0)
        parts.append(Part(name.replace("_", " "), places * tower(section, size, f"config.model.{name}"), backward))
    sides = [(model.understanding_adapter, "understanding_tower")]
    if not (model.same_tower and model.share_adapter):
        sides.append((model.generation_adapter, target_tower(model)))
    shown, drawn = visual_tokens(config)
    for (adapter, name), tokens in zip(sides, (shown, drawn), strict=False):
        parts += _adapter(config, adapter, name, float(places * tokens), learns=name not in still)
    return parts


def _adapter(config: Config, adapter: AdapterConfig, name: str, tokens: float, learns: bool) -> list[Part]:
    features, width = tower_width(getattr(config.model, name), f"config.model.{name}"), config.model.decoder.width
    parts = [Part("adapter", 2.0 * tokens * features * width, 2.0 if learns else 1.0)]
    return [*parts, Part("adapter output", 2.0 * tokens * width**2, 2.0)] if adapter.kind == "mlp" else parts
