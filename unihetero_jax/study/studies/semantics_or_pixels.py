"""Which visual objective helps understanding: UniHetero (arXiv 2512.23512), finding A1.

All arms have the same data and slots; ``text`` has the understanding samples alone, as many of them. Pixels are the raw
patches of the generated tokens, by a diffusion head on the hidden states; the number in a level's name is the share of
its gradient that reaches the decoder. ``own_latents`` is the hybrid that generates pixels and has them, not semantics,
as its inputs. The report also has the angle between the objectives' gradients on each layer of the decoder.

At scale ``paper`` it is UniHetero-7B on a dataset of image-text pairs; there pixels are KL-16 latents.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import presets
from unihetero_jax.study import pairings
from unihetero_jax.study.definition import Claim, Levels, Metric, Scale, Study

_PAIRING = "siglip_siglip"
# Weight of the semantic and of the pixel objective, and the share of the latter's gradient that reaches the decoder.
_WEIGHTS = {
    "text": (0.0, 0.0, 0.0),
    "semantic": (1.0, 0.0, 0.0),
    "pixel_1": (0.0, 1.0, 1.0),
    "pixel_0.3": (0.0, 1.0, 0.3),
    "pixel_0.1": (0.0, 1.0, 0.1),
    "pixel_detached": (0.0, 1.0, 0.0),
    "semantic_pixel_detached": (1.0, 1.0, 0.0),
    "own_latents": (0.0, 1.0, 1.0),
}

# With this weight the pixel objective's gradient on the decoder's layers has about the norm of the semantic
# objective's (0.1 each, after 100 and more steps); a much smaller one could neither help nor harm.
_PIXEL_WEIGHT = 2.5


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """Return the config of a model that generates semantics, pixels, both or nothing."""
    generated = levels["generated"]
    if scale == "paper":
        return _full_size(generated)
    config = pairings.train_config(_PAIRING, "understanding" if generated == "text" else "mixed", scale)
    if generated in ("text", "semantic"):
        return config  # an arm of mutual_benefit
    semantic, pixel, gradient = _WEIGHTS[generated]
    losses = config.losses
    losses.semantic.weight = semantic
    _small_head(losses.pixel)
    losses.pixel.weight = pixel * _PIXEL_WEIGHT
    losses.pixel.gradient_to_decoder = gradient
    if generated == "own_latents":
        model = config.model
        model.generation = "latents"
        model.generation_tower = {"kind": "pixels", "patch_size": 16}
    return config


def _small_head(pixel: ml_collections.ConfigDict) -> None:
    pixel.kind = "diffusion"
    # Raw patches are mostly white. A DDPM with learned variances becomes certain of that, and its loss jumps.
    pixel.objective = "flow"
    pixel.width = 128
    pixel.depth = 2
    pixel.draws = 2
    pixel.steps = 10


def _full_size(generated: str) -> ml_collections.ConfigDict:
    semantic, pixel, gradient = _WEIGHTS[generated]
    config = presets.unihetero("7b")
    config.data.sources = {"pairs": {"reverse": 0.0 if generated == "text" else 0.5}}
    config.losses.semantic.weight = semantic
    config.losses.pixel.weight = pixel
    config.losses.pixel.gradient_to_decoder = gradient
    if generated in ("own_latents", "text"):
        config.data.input_role = "input"
    if generated == "text":
        # As many understanding pairs as the other arms, half of whose pairs are reversed for generation.
        config.train.steps //= 2
    if generated == "own_latents":
        model = config.model
        model.generation = "latents"
        model.generation_tower = {"kind": "kl16", "preset": "kl16", "sample": True}
    return config


def _claims() -> tuple[Claim, ...]:
    answers, angle = "vqa.total.score", "training.gradient_cosine.text_drawn"
    return (
        Claim("A1.semantics_help", "generating semantics improves answers", answers, {"semantic": 1.0, "text": -1.0}),
        *(
            Claim(
                f"A1.pixels_harm.{part}",
                f"generating pixels makes answers worse where {part} of their gradient reaches the decoder",
                answers,
                {"text": 1.0, f"pixel_{part}": -1.0},
            )
            for part in ("1", "0.3", "0.1")
        ),
        Claim(
            "A1.semantics_not_pixels",
            "answers are better with generated semantics than with generated pixels",
            answers,
            {"semantic": 1.0, "pixel_1": -1.0},
        ),
        Claim(
            "A1.detached_is_harmless",
            "answers are better where none of the pixels' gradient reaches the decoder than where all of it does",
            answers,
            {"pixel_detached": 1.0, "pixel_1": -1.0},
        ),
        Claim(
            "A1.two_kinds_of_tokens",
            "answers are better with semantics in the decoder and pixels behind it than with its own pixels as inputs",
            answers,
            {"semantic_pixel_detached": 1.0, "own_latents": -1.0},
        ),
        Claim(
            "A1.mechanism",
            "the gradient of the semantic objective is closer to that of the text than the gradient of the pixels is",
            angle,
            {"semantic": 1.0, "pixel_1": -1.0},
        ),
    )


STUDY = Study(
    name="semantics_or_pixels",
    question="Does generating semantics help understanding, and does generating pixels harm it?",
    source="UniHetero (arXiv 2512.23512), finding A1",
    factors={"generated": tuple(_WEIGHTS)},
    experiment=experiment,
    claims=_claims(),
    metrics=(
        *pairings.METRICS,
        Metric("losses.generation.pixel", "pixel loss", higher_is_better=False),
        Metric("training.gradient_cosine.text_drawn", "cosine of gradients"),
    ),
    towers=pairings.TOWERS,
    datasets={"pairs": "image-text pairs, imported by `unihetero data import`"},
)
