"""Requests for pictures beside real captions: a small twin of paper B's LLaVA validation (arXiv 2505.23043).

The twin reads and names emojis, and beside each so many of them learns to draw some by their names: none, half as many
as it reads, or as many. It reads as many in every arm, so that those that also draw take more steps. The full-size
study is ``llava``.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import defaults
from unihetero_jax.study.declaration import Claim, Levels, Metric, Scale, Study

# Pictures to draw, for each that is read.
_DRAWN = {"none": 0.0, "half": 0.5, "equal": 1.0}
_READING_STEPS = {"tiny": 500, "small": 6_000}
_SCORE = "answers.emoji/caption.f1"


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """A small model of emojis and their names."""
    drawn = _DRAWN[levels["drawn"]]
    config = defaults()
    config.data.sources = {"emoji": {"root": "", "turn_round": drawn / (1 + drawn)}}
    config.data.mode = "mixed" if drawn else "understanding"
    # The longest name takes the rest of a row, behind 16 tokens of its picture.
    config.data.slots = 64
    config.data.images_per_row = 1
    decoder = config.model.decoder
    decoder.width, decoder.layers, decoder.heads, decoder.kv_heads, decoder.mlp_width = 96, 3, 4, 4, 256
    decoder.dropout = 0.1
    decoder.dtype = "float32"
    decoder.tie_embeddings = False
    decoder.logit_scale = 1.0
    # What is transparent is white: white becomes zero, and a patch is what is drawn on it.
    config.model.understanding_tower.pixel_mean = 1.0
    config.model.understanding_tower.width = 96
    config.losses.semantic.weight = 1.0
    config.losses.pixel.width = 256
    config.train.batch_size = 16
    config.train.steps = round(_READING_STEPS[scale] * (1 + drawn))
    config.checkpoint.every_steps = 500
    config.checkpoint.keep_latest = 1
    config.evaluate.images = 64
    return config


def _claims() -> tuple[Claim, ...]:
    return tuple(
        Claim(
            f"LLaVA.emoji.{drawn}",
            f"names of held-out emojis are nearer to the true ones where the model also draws ({drawn} as many)",
            _SCORE,
            {drawn: 1.0, "none": -1.0},
        )
        for drawn in ("half", "equal")
    )


STUDY = Study(
    name="real_world",
    question="Does learning to draw help to read real pictures?",
    source="Are Unified Vision-Language Models Necessary (arXiv 2505.23043), LLaVA-1.5 validation, as a small twin",
    factors={"drawn": tuple(_DRAWN)},
    experiment=experiment,
    claims=_claims(),
    metrics=(
        Metric(_SCORE, "token F1"),
        Metric("answers.emoji/caption.exact", "exact"),
        Metric("losses.generation.semantic", "semantic loss", higher_is_better=False),
        Metric("generation.free_cosine", "cosine, free"),
        Metric("generation.free_cosine_other", "with another", higher_is_better=False),
    ),
    datasets={"emoji": "as in configs/emoji.py"},
    scales=("tiny", "small"),
)
