"""FLOPs of a training step, counted from the config.

A product of [m, k] and [k, n] is 2·m·k·n. Norms, softmax, activations and the optimizer are left out, as is usual
(PaLM, arXiv 2204.02311, appendix B). Causal attention is counted once: a slot reads half of its row on average. Towers
run on every image place of a batch, filled or not.

    forward = B·(T·linears + 2·T·T·H·C·layers + T·head) + B·K·(towers + adapters) + B·M·heads
    step    = Σ parts forward · (1 + backward)

``backward`` is 2 for what is trained (gradients of weights and of inputs), 1 where one of the two is not needed, 0 for
what is frozen with nothing trained in front of it. B rows, T slots, K images per row, M = K·N visual tokens per row.
"""

from __future__ import annotations

from unihetero_jax.config import (
    AdapterConfig,
    Config,
    DecoderConfig,
    frozen_groups,
    frozen_towers,
    table_rows,
    target_tower,
    towers_in_use,
    visual_tokens,
)
from unihetero_jax.config.components import Part as Part
from unihetero_jax.model.attention.base import find

FORMULA = "Σ over parts of forward · (1 + backward); a product is 2·m·k·n, causal attention counted once"


def step_parts(config: Config, vocabulary: int, attention: str = "xla", context: int = 1) -> list[Part]:
    """Return the parts of a training step, over the global batch.

    Args:
      config: the run's configuration.
      vocabulary: token ids.
      attention: the decoder's implementation of it; changes what is done, not what counts.
      context: devices that a row is split over.
    """
    model, decoder = config.model, config.model.decoder
    rows, slots = config.train.batch_size, config.data.seq_len
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
    """Return the forward FLOPs per token of the decoder's matrices, without embeddings and head."""
    width, head = config.width, config.head_dim
    attention = width * head * (2 * config.heads + 2 * config.kv_heads)
    return 2.0 * config.layers * (attention + 3 * width * config.mlp_width)


def decoder_attention(config: DecoderConfig, slots: int) -> float:
    """Return the forward FLOPs per token of scores and mixing: 2 products of 2·H·C over half of the row."""
    return 2.0 * config.layers * config.heads * config.head_dim * slots


def _lora(config: Config) -> float:
    """Return the forward FLOPs per token of factors beside every linear of the decoder."""
    decoder, rank = config.model.decoder, config.model.lora.rank
    width, heads, groups = decoder.width, decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    ends = (width + heads) * 2 + (width + groups) * 2 + 3 * (width + decoder.mlp_width)
    return 2.0 * decoder.layers * rank * ends


def _tower_parts(config: Config, places: int) -> list[Part]:
    model, size = config.model, config.data.image_size
    still = frozen_towers(config)
    parts = [
        Part(
            name.replace("_", " "),
            0.0 if section.cached else places * section.flops(size),
            0.0 if name in still else section.backward,
        )
        for name, section in towers_in_use(config).items()
    ]
    sides = [(model.understanding_adapter, "understanding_tower")]
    if model.generation_adapter is not None:
        sides.append((model.generation_adapter, target_tower(model)))
    for (adapter, name), tokens in zip(sides, visual_tokens(config), strict=False):
        parts += _adapter(config, adapter, name, float(places * tokens), learns=name not in still)
    return parts


def _adapter(config: Config, adapter: AdapterConfig, name: str, tokens: float, learns: bool) -> list[Part]:
    features, width = getattr(config.model, name).features, config.model.decoder.width
    parts = [Part("adapter", 2.0 * tokens * features * width, 2.0 if learns else 1.0)]
    return [*parts, Part("adapter output", 2.0 * tokens * width**2, 2.0)] if adapter.kind == "mlp" else parts
