"""Generation beside real captions: a small twin of paper B's LLaVA validation (arXiv 2505.23043).

The twin learns to name emojis, and to generate none, half as many or as many of them from their names. Every arm has
the same number of understanding samples, so that arms with generation take more steps. The full-size study is
``llava``.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import defaults
from unihetero_jax.study.definition import Claim, Levels, Metric, Scale, Study

# Generation samples per understanding sample.
_GENERATED = {"none": 0.0, "half": 0.5, "equal": 1.0}
_UNDERSTANDING_STEPS = {"tiny": 500, "small": 6_000}
_SCORE = "answers.emoji/caption.f1"


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a small model of emojis and their names."""
    generated = _GENERATED[levels["generated"]]
    config = defaults()
    config.data.sources = {"emoji": {"root": "", "reverse": generated / (1 + generated)}}
    config.data.mode = "mixed" if generated else "understanding"
    # An image has 16 tokens; the longest name fills the rest of a row.
    config.data.seq_len = 64
    config.data.images_per_row = 1
    decoder = config.model.decoder
    decoder.width, decoder.layers, decoder.heads, decoder.kv_heads, decoder.mlp_width = 96, 3, 4, 4, 256
    decoder.dropout = 0.1
    decoder.dtype = "float32"
    decoder.tie_embeddings = False
    decoder.logit_scale = 1.0
    # Transparent pixels are white; with this mean they become 0, and the background drops out.
    config.model.understanding_tower.pixel_mean = 1.0
    config.model.understanding_tower.width = 96
    config.losses.semantic.weight = 1.0
    config.losses.pixel.width = 256
    config.train.batch_size = 16
    config.train.steps = round(_UNDERSTANDING_STEPS[scale] * (1 + generated))
    config.checkpoint.every_steps = 500
    config.checkpoint.keep_latest = 1
    config.evaluate.images = 64
    return config


STUDY = Study(
    name="real_world",
    question="Does learning to generate images help to understand real ones?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), LLaVA-1.5 validation, as a small twin",
    factors={"generated": tuple(_GENERATED)},
    experiment=experiment,
    claims=tuple(
        Claim(
            f"LLaVA.emoji.{generated}",
            f"names of held-out emojis are better with generation samples ({generated} as many)",
            _SCORE,
            {generated: 1.0, "none": -1.0},
        )
        for generated in ("half", "equal")
    ),
    metrics=(
        Metric(_SCORE, "token F1"),
        Metric("answers.emoji/caption.exact", "exact"),
        Metric("losses.generation.semantic", "semantic loss", higher_is_better=False),
        Metric("generation.free_cosine", "cosine, free-running"),
        Metric("generation.free_cosine_other", "cosine, another image", higher_is_better=False),
    ),
    datasets={"emoji": "as in configs/emoji.py"},
    scales=("tiny", "small"),
)
