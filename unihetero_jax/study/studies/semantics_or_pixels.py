"""What a model should draw for the sake of understanding: UniHetero (arXiv 2512.23512), finding A1.

The same data and slots throughout, but for ``text``, which has those to be understood alone, as many. Pixels are the
raw patches behind the drawn tokens, by a diffusion head on the hidden states; *attached*, some of its gradient reaches
the decoder. ``own_latents`` is the hybrid that draws pixels and reads those back, not semantics. Beside the scores
stands the angle between the objectives' gradients on each layer of the decoder.

At scale ``paper`` it is UniHetero-7B on a dataset of image-text pairs; there pixels are KL-16 latents.
"""

from __future__ import annotations

import ml_collections

from unihetero_jax.config import presets
from unihetero_jax.study import common
from unihetero_jax.study.declaration import Claim, Levels, Metric, Scale, Study

_PAIRING = "siglip_siglip"
# Weight of the semantic objective, of the pixel objective, and the part of the latter's gradient that the decoder gets.
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

# With it the pixels' gradient on the decoder's layers is about as long as that of the semantic objective (0.1 each,
# after 100 and more steps): what is shorter could neither help nor harm.
_PIXEL_WEIGHT = 2.5


def experiment(levels: Levels, scale: Scale) -> ml_collections.ConfigDict:
    """A model that draws semantics, pixels, both or nothing."""
    drawn = levels["drawn"]
    if scale == "paper":
        return _full_size(drawn)
    config = common.trained(_PAIRING, "understanding" if drawn == "text" else "mixed", scale)
    if drawn in ("text", "semantic"):
        return config  # arms of mutual_benefit
    semantic, pixel, gradient = _WEIGHTS[drawn]
    losses = config.losses
    losses.semantic.weight = semantic
    _small_head(losses.pixel)
    losses.pixel.weight = pixel * _PIXEL_WEIGHT
    losses.pixel.gradient_to_decoder = gradient
    if drawn == "own_latents":
        model = config.model
        model.generation = "latents"
        model.generation_tower = {"kind": "pixels", "patch_size": 16}
    return config


def _small_head(pixel: ml_collections.ConfigDict) -> None:
    pixel.kind = "diffusion"
    # Raw patches are mostly white, which a DDPM with learned variances takes for certain: its loss jumps.
    pixel.objective = "flow"
    pixel.width = 128
    pixel.depth = 2
    pixel.draws = 2
    pixel.steps = 10


def _full_size(drawn: str) -> ml_collections.ConfigDict:
    semantic, pixel, gradient = _WEIGHTS[drawn]
    config = presets.unihetero("7b")
    config.data.sources = {"pairs": {"turn_round": 0.0 if drawn == "text" else 0.5}}
    config.losses.semantic.weight = semantic
    config.losses.pixel.weight = pixel
    config.losses.pixel.gradient_to_decoder = gradient
    if drawn in ("own_latents", "text"):
        config.data.input_role = "input"
    if drawn == "text":
        # It sees as many pairs to be understood as the others, whose other half is turned round.
        config.train.steps //= 2
    if drawn == "own_latents":
        model = config.model
        model.generation = "latents"
        model.generation_tower = {"kind": "kl16", "preset": "kl16", "sample": True}
    return config


def _claims() -> tuple[Claim, ...]:
    answers, angle = "vqa.total.score", "training.gradient_cosine.text_drawn"
    return (
        Claim("A1.semantics_help", "drawing semantics makes answers better", answers, {"semantic": 1.0, "text": -1.0}),
        *(
            Claim(
                f"A1.pixels_harm.{part}",
                f"drawing pixels makes answers worse where {part} of their gradient reaches the decoder",
                answers,
                {"text": 1.0, f"pixel_{part}": -1.0},
            )
            for part in ("1", "0.3", "0.1")
        ),
        Claim(
            "A1.semantics_not_pixels",
            "answers are better where semantics are drawn than where pixels are",
            answers,
            {"semantic": 1.0, "pixel_1": -1.0},
        ),
        Claim(
            "A1.detached_is_harmless",
            "answers are better where the pixels' gradient stays out of the decoder than where all of it reaches it",
            answers,
            {"pixel_detached": 1.0, "pixel_1": -1.0},
        ),
        Claim(
            "A1.two_kinds_of_tokens",
            "answers are better with semantics in the decoder and pixels behind it than where it reads its own pixels",
            answers,
            {"semantic_pixel_detached": 1.0, "own_latents": -1.0},
        ),
        Claim(
            "A1.mechanism",
            "the gradient of the semantic objective lies nearer to that of the text than the pixels' does",
            angle,
            {"semantic": 1.0, "pixel_1": -1.0},
        ),
    )


STUDY = Study(
    name="semantics_or_pixels",
    question="Does it help understanding to draw semantics, and harm it to draw pixels?",
    source="UniHetero (arXiv 2512.23512), finding A1",
    factors={"drawn": tuple(_WEIGHTS)},
    experiment=experiment,
    claims=_claims(),
    metrics=(
        *common.METRICS,
        Metric("losses.generation.pixel", "pixel loss", higher_is_better=False),
        Metric("training.gradient_cosine.text_drawn", "cosine of gradients"),
    ),
    towers=common.TOWERS,
    datasets={"pairs": "image-text pairs, made by `unihetero data import`"},
)
